"""Models that tests name on the command line: other_models:function. None is one of ours."""

import torch
from torch import nn

LAYERS, HIDDEN = 3, 32
BATCH = torch.randn(4, 16, HIDDEN, generator=torch.Generator().manual_seed(1))
number = 5


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 128), nn.Linear(128, HIDDEN)

    def forward(self, x):
        return x + self.down(nn.functional.silu(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


class Peeks(Net):
    """Looks at a value, which a tensor without values has not."""

    def forward(self, x):
        return super().forward(x) * (1.0 if x.sum() > 0 else -1.0)


class Counts(Net):
    """Looks at a value as it is made."""

    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 1, LAYERS)]


class Large(Net):
    """A weight of 4 TiB, which no machine that runs the tests holds."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2**35, HIDDEN)


def net():
    return Net(), BATCH


def keywords():
    return Net(), {"x": BATCH}


def peeks():
    return Peeks(), BATCH


def counts():
    return Counts(), BATCH


def large():
    return Large(), torch.randn(4, 16, HIDDEN)


def frozen():
    model = Net()
    model.layers[0].requires_grad_(False)
    return model, BATCH


def narrow():
    return Net(), torch.randn(4, 16, HIDDEN)


def wrong_batch():
    return Net(), torch.randn(4, 16, HIDDEN + 1)


def without_batch():
    return Net()


def raises():
    raise ValueError("no weights here\nand more lines")


def exits():
    raise SystemExit(3)


def returns_a_number():
    return 3
