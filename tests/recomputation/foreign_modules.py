"""What others put in place of our modules: adapters, other products and norms, hooks. Changes are made to a model."""

import functools

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

LINEAR = [("attention", "qkv"), ("attention", "projection"), ("mlp", "fc1"), ("mlp", "fc2")]


class Adapter(nn.Module):
    """base(x) + up(down(dropout(x))): low rank, with torch's dropout (Hu et al. 2021)."""

    def __init__(self, base, rank=3):
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(0.2)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(self.dropout(x)))


def wrap(model, wrapper):
    """Put `wrapper` around every linear layer; the weights that it adds are the same in every model."""
    torch.manual_seed(3)
    for block in model.layers:
        for part, name in LINEAR:
            module = getattr(block, part)
            setattr(module, name, wrapper(getattr(module, name)))


def around(wrapper):
    """As a change of a whole model."""
    return functools.partial(wrap, wrapper=wrapper)


class OwnProduct(nn.Module):
    """Uses the weights without calling the layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.rand(base.out_features, 1))

    def forward(self, x):
        return functional.linear(x, self.base.weight * self.scale, self.base.bias)


class Twice(nn.Module):
    """Calls the layer twice, and keeps its own input and one of the two results for a product of its own."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, x):
        return self.base(x) + self.base(0.5 * x) * (x * x).mean(-1, keepdim=True)


class SliceOfWider(nn.Module):
    """Returns a view: the middle of a wider product over flattened tokens."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.more = nn.Parameter(torch.rand(2, base.in_features))

    def forward(self, x):
        weight = torch.cat([self.more, self.base.weight, self.more])
        wide = functional.linear(x.flatten(0, 1), weight).unflatten(0, x.shape[:2])
        return wide[..., 2:-2] if self.base.bias is None else wide[..., 2:-2] + self.base.bias


class ViewOfInput(nn.Module):
    """Returns a view of its input's own memory wherever that is wide enough, and has no product there."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.out_features = base.out_features

    def forward(self, x):
        return x[..., : self.out_features] if x.shape[-1] > self.out_features else self.base(x)


class WritesIntoInput(nn.Module):
    """Drops out in place, where what the layer reads is nobody else's: not so the context."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.dropout = nn.Dropout(0.2, inplace=base.in_features != base.out_features)

    def forward(self, x):
        return self.base(self.dropout(x))


def hooked(base):
    """Hooks that change everything that hooks may."""
    base.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1.1,))
    base.register_forward_hook(lambda module, inputs, out: out * 0.9)
    base.register_full_backward_pre_hook(lambda module, grad_out: (grad_out[0] * 1.01,))
    base.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 1.02,))
    return base


def replace_norms(model):
    for block in model.layers:
        block.ln1, block.ln2 = nn.LayerNorm(48), nn.RMSNorm(48)


def hook_norms(model):
    for block in model.layers:
        for norm in (block.ln1, block.ln2):
            norm.register_forward_hook(lambda module, inputs, out: out * 1.3)


def hook_hidden_dropout(model):
    for block in model.layers:
        block.attention_dropout.register_forward_hook(lambda module, inputs, out: out * 1.3)


class _OnePlus(nn.Module):
    def forward(self, weight):
        return 1 + weight


def parametrize_norms(model):
    for block in model.layers:
        for norm in (block.ln1, block.ln2):
            parametrize.register_parametrization(norm, "weight", _OnePlus())


CHANGES = {
    "own product": around(OwnProduct),
    "twice": around(Twice),
    "slice of wider": around(SliceOfWider),
    "view of input": around(ViewOfInput),
    "writes into input": around(WritesIntoInput),
    "hooked": around(hooked),
    "replaced norms": replace_norms,
    "hooked norms": hook_norms,
    "hooked hidden dropout": hook_hidden_dropout,
    "parametrized norms": parametrize_norms,
}


class _Product(torch.autograd.Function):
    """x weightᵀ, with notes of the input as forward had it and as backward finds it."""

    @staticmethod
    def forward(ctx, x, weight, notes, on_context):
        ctx.notes, ctx.on_context = notes, on_context
        notes["forward"].append(x.detach().clone())
        ctx.save_for_backward(*([weight] if on_context else [weight, x]))
        ctx.x = x if on_context else None
        return functional.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        weight, *saved = ctx.saved_tensors
        x = ctx.x if ctx.on_context else saved[0]
        ctx.notes["backward"].append(x.detach().clone())
        return grad @ weight, grad.flatten(0, 1).t() @ x.flatten(0, 1), None, None


class ReadsInput(nn.Module):
    """A product of its own that reads its input in backward: from what autograd saved, or from the context object."""

    def __init__(self, base, notes, on_context=False):
        super().__init__()
        self.base, self.notes, self.on_context = base, notes, on_context

    def forward(self, x):
        out = _Product.apply(x, self.base.weight, self.notes, self.on_context)
        return out if self.base.bias is None else out + self.base.bias
