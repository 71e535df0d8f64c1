"""Small models with checkpoints of every make, right and wrong ones."""

import functools

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

WIDTH, TOKENS = 8, 12


class Layer(nn.Module):
    def __init__(self, dropout_p=0.3, norm=False):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(dropout_p)
        self.norm = nn.BatchNorm1d(WIDTH) if norm else nn.Identity()

    def forward(self, x):
        return x + self.norm(self.dropout(self.fc2(torch.tanh(self.fc1(x)))))


class Stack(nn.Module):
    """Layers in regions that `checkpointing(layer, x)` runs, and a loss."""

    def __init__(self, checkpointing, layers=3, embed=True, **layer):
        super().__init__()
        torch.manual_seed(5)
        self.checkpointing = checkpointing
        self.embed = nn.Linear(WIDTH, WIDTH) if embed else nn.Identity()
        self.layers = nn.ModuleList(Layer(**layer) for _ in range(layers))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = self.checkpointing(layer, x)
        return x.square().mean()


class OwnCheckpoint(torch.autograd.Function):
    """Right: the same random state, a graph of the second run, gradients of the parameters by its backward."""

    @staticmethod
    def forward(ctx, layer, x, *parameters):
        ctx.layer, ctx.state = layer, torch.get_rng_state()
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        parameters = list(ctx.layer.parameters())
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            out = ctx.layer(x)
        return None, *torch.autograd.grad(out, [x, *parameters], grad)


class OwnWithoutWeights(torch.autograd.Function):
    """As in many a tutorial: only the input's gradient comes back."""

    @staticmethod
    def forward(ctx, layer, x):
        ctx.layer, ctx.state = layer, torch.get_rng_state()
        ctx.save_for_backward(x)
        return layer(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.state)
            out = ctx.layer(x)
        return None, torch.autograd.grad(out, x, grad)[0]


class OwnWithoutState(OwnCheckpoint):
    """The second run draws its own random numbers."""

    @staticmethod
    def backward(ctx, grad):
        ctx.state = torch.get_rng_state()
        torch.rand(1)
        return OwnCheckpoint.backward(ctx, grad)


class OwnScaled(OwnCheckpoint):
    """The first weight's gradient is off by a thousandth."""

    @staticmethod
    def backward(ctx, grad):
        nothing, x, weight, *rest = OwnCheckpoint.backward(ctx, grad)
        return nothing, x, weight * 1.001, *rest


def with_parameters(function):
    return lambda layer, x: function.apply(layer, x, *layer.parameters())


def torch_checkpoint(**settings):
    return lambda layer, x: checkpoint(layer, x, **settings)


def keep_products(_, op, *__, **___):
    return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


SELECTIVE = functools.partial(create_selective_checkpoint_contexts, keep_products)


def wrapped(**layer):
    """As torchtitan does it: each layer inside a checkpoint_wrapper."""
    model = Stack(lambda layer, x: layer(x), **layer)
    for number, inner in enumerate(model.layers):
        model.layers[number] = checkpoint_wrapper(inner)
    return model


def make_input():
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
