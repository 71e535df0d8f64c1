"""What a fault of the corpus is, and the small models that most of them are shown on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WIDTH, TOKENS = 8, 12
Run = Callable[[nn.Module, Tensor], Tensor]


class Case(NamedTuple):
    """What megaselect.verify is given."""

    model: nn.Module
    batch: Any
    loss_fn: Callable[[Any], Tensor] | None = None


@dataclass(frozen=True)
class Fault:
    """A training that is silently another one, and the same mended.

    name: as docs/silent-errors.md calls it. check, says: the check that must find it, and words of what it must say.
    wrong, right: each a new Case. needs: a package that it cannot do without, "" for none but torch.
    """

    name: str
    check: str
    says: str
    wrong: Callable[[], Case]
    right: Callable[[], Case]
    needs: str = ""


def batch() -> Tensor:
    """[TOKENS, WIDTH], fp32, the same each time."""
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def region(layer: Callable[..., Tensor], *args: Any, use_reentrant: bool = False, **kwargs: Any) -> Tensor:
    """torch's checkpoint, non-reentrant where nothing is said."""
    return checkpoint(layer, *args, use_reentrant=use_reentrant, **kwargs)


def reentrant(layer: Callable[..., Tensor], *args: Any) -> Tensor:
    """torch's checkpoint with a nested backward, which compares nothing of the two runs."""
    return checkpoint(layer, *args, use_reentrant=True)


def without(layer: Callable[..., Tensor], *args: Any) -> Tensor:
    """No checkpoint."""
    return layer(*args)


class Layer(nn.Module):
    """Two products and a tanh, with dropout where p is not 0. [t, h] -> [t, h]."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.fc2(torch.tanh(self.fc1(x))))


class Chain(nn.Module):
    """A product, layers that `run(layer, x)` runs, and a loss."""

    def __init__(self, make_layer: Callable[[], nn.Module], run: Run = region, layers: int = 2) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.run = run
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(make_layer() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = self.run(layer, x)
        return x.square().mean()


def chain(make_layer: Callable[[], nn.Module], run: Run = region, layers: int = 2) -> Callable[[], Case]:
    """Makes a Chain and its batch."""
    return lambda: Case(Chain(make_layer, run, layers), batch())


def dropping() -> Layer:
    """A layer with dropout."""
    return Layer(0.3)
