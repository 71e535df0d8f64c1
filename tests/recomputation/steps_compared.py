"""Steps of training code with and without `megaselect.recompute`: every loss and gradient must have the same bits."""

import torch
from torch import nn
from torch.nn import functional

from megaselect import recompute

SETTINGS = ["selective", "full"]
HIDDEN, VOCABULARY = 32, 40


class Layer(nn.Module):
    """A layer as people write it: attention in plain torch, dropout everywhere."""

    def __init__(self, dropout=0.2):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.projection = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)
        self.dropout = dropout

    def forward(self, x):
        batch, length, _ = x.shape
        query, key, value = (
            part.view(batch, length, 4, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        weights = self._drop((query @ key.transpose(-1, -2) / 3).softmax(-1))
        x = x + self._drop(self.projection((weights @ value).transpose(1, 2).reshape(batch, length, HIDDEN)))
        return x + self._drop(self.down(functional.gelu(self.up(self.norm2(x)))))

    def _drop(self, x):
        return functional.dropout(x, self.dropout, self.training)


class Language(nn.Module):
    """Tokens to logits."""

    def __init__(self, layers=2):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, tokens):
        x = functional.dropout(self.embedding(tokens), 0.1, self.training)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def tokens(seed, batch=2, length=16):
    """The same for the same seed."""
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def values(seed, *shape):
    """Normally distributed, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cross_entropy(model, batch):
    """Of the model's logits with its own tokens."""
    return functional.cross_entropy(model(batch).flatten(0, 1), batch.flatten())


def plain_step(model, number):
    """A forward and a backward pass."""
    loss = cross_entropy(model, tokens(number))
    loss.backward()
    return [loss]


def squares(*shape):
    """A step of a model of values: the mean of the squares of what it gives."""

    def step(model, number):
        output = model(values(number, *shape))
        loss = (output if isinstance(output, torch.Tensor) else output[0]).float().square().mean()
        loss.backward()
        return [loss]

    return step


def run(build, step, setting=None, steps=4, wrap=lambda model: model):
    """([what each step gave, a random number drawn after it, its gradients, buffers], plan).

    build() makes the model, step(model, number) gives tensors. setting: None for no plan at all. wrap(model): what
    trains instead of it.
    """
    torch.manual_seed(1)
    model = build()
    plan = None if setting is None else recompute(model, setting)
    trained = wrap(model)
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trace = []
    for number in range(steps):
        optimizer.zero_grad()
        trace += [part.detach().clone() for part in step(trained, number)]
        trace.append(torch.rand(1))
        trace += [torch.empty(0) if part.grad is None else part.grad.clone() for part in model.parameters()]
        optimizer.step()
        trace += [part.clone() for part in model.buffers()]
    return trace, plan


def differing(one, other):
    """Numbers of the tensors of two traces that have not the same bits; nan is nan."""
    assert len(one) == len(other)
    return [
        number
        for number, (left, right) in enumerate(zip(one, other, strict=True))
        if not torch.equal(left, right) and not torch.equal(left.nan_to_num(), right.nan_to_num())
    ]


def assert_same(build, step, setting, **options):
    """Steps with `setting` are as without recompute; the plan."""
    expected, _ = run(build, step, None, **options)
    found, plan = run(build, step, setting, **options)
    assert differing(expected, found) == []
    return plan
