"""The first tensor that differs, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Values = Mapping[str, Tensor | None]
LOSS = "loss"  # its name among a step's values; all others are gradients
UNLIKE = 1e-3  # of a gradient's own size: another mask makes far more
ROUNDING_STEPS = 32  # of fp32 or fp64: a difference so small is another order of sums, no wrong mask


def differences(actual: Values, expected: Values) -> Iterator[str]:
    """A sentence for each tensor that is not the expected one to the bit, in the order of `expected`."""
    for name, want in expected.items():
        got = actual.get(name)
        if got is None and want is None:
            continue
        if got is None or want is None:
            yield f"{name}: {'missing' if got is None else 'not missing'}, other than in the reference"
            continue
        got, want = _dense(got), _dense(want)
        if got.shape != want.shape:
            yield f"{name}: shape {list(got.shape)} in place of {list(want.shape)}"
        elif not _equal(got, want):
            yield f"{name} {by_how_much(got, want)}"


def _equal(got: Tensor, want: Tensor) -> bool:
    """To the bit, or not a number in the same places."""
    if torch.equal(got, want):
        return True
    missing = want.isnan()
    return torch.equal(got.isnan(), missing) and torch.equal(got.masked_fill(missing, 0), want.masked_fill(missing, 0))


def _dense(tensor: Tensor) -> Tensor:
    """The gradient of nn.Embedding(sparse=True) is none; its rows add up in one order."""
    return tensor if tensor.layout is torch.strided else tensor.detach().to_dense()


def by_how_much(got: Tensor, want: Tensor) -> str:
    """`differs in 3 of 20 elements, by at most 2e-06 (3.1e-04 of the largest)`, for tensors of one shape."""
    count = int((got != want).sum())
    where = f"differs in {count:,} of {want.numel():,} elements"
    got, want = got.double(), want.double()
    largest = float((got - want).abs().max())
    scale = float(want.abs().max())
    relative = f" ({largest / scale:.1e} of the largest)" if scale > 0 else ""
    return f"{where}, by at most {largest:.1e}{relative}"


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact| in fp64, 0 where both are zero."""
    actual, exact = actual.double(), exact.double()
    error, scale = float((actual - exact).norm()), float(exact.norm())
    return error / scale if scale > 0 else (0.0 if error == 0 else float("inf"))


def distance(actual: Values, expected: Values) -> float:
    """The largest error of a gradient, as a share of the largest gradient."""
    pairs = [(got.double(), want.double()) for name, (got, want) in _pairs(actual, expected).items() if name != LOSS]
    largest = max((float(want.norm()) for _, want in pairs), default=0.0)
    return max((float((got - want).norm()) for got, want in pairs), default=0.0) / (largest or 1.0)


def _pairs(actual: Values, expected: Values) -> dict[str, tuple[Tensor, Tensor]]:
    """What both have, dense."""
    return {
        name: (_dense(got), _dense(want))
        for name, want in expected.items()
        if want is not None and (got := actual.get(name)) is not None
    }


def differ_by_rounding(actual: Values, expected: Values, rounds_as: torch.dtype | None = None) -> bool:
    """Whether another order of sums explains it: some roundings of the loss, and of the largest gradient for each.

    rounds_as: what tensors are rounded to on the way, if not their own dtype.
    A gradient may be zero but for rounding, such as that of a bias before a softmax: its own size is no measure.
    """
    pairs = _pairs(actual, expected)
    if any(got.dtype not in (torch.float32, torch.float64) for got, _ in pairs.values()):
        return False
    sizes = {name: float(want.double().norm()) for name, (_, want) in pairs.items()}
    largest = max((size for name, size in sizes.items() if name != LOSS), default=0.0)
    return all(
        float((got.double() - want.double()).norm())
        <= ROUNDING_STEPS * torch.finfo(rounds_as or got.dtype).eps * (sizes[name] if name == LOSS else largest)
        for name, (got, want) in pairs.items()
    )


class Unlike(NamedTuple):
    """A gradient that is another one. size: as a share of the largest."""

    sentence: str
    size: float


def unlike(actual: Values, expected: Values) -> Unlike | None:
    """The largest of the gradients that are off by more than UNLIKE of themselves, if any are."""
    pairs = {name: pair for name, pair in _pairs(actual, expected).items() if name != LOSS}
    sizes = {name: float(want.double().norm()) for name, (_, want) in pairs.items()}
    wrong = [name for name, (got, want) in pairs.items() if relative_error(got, want) > UNLIKE]
    if not wrong:
        return None
    name = max(wrong, key=sizes.__getitem__)
    return Unlike(f"{name} {by_how_much(*pairs[name])}", sizes[name] / (max(sizes.values()) or 1.0))
