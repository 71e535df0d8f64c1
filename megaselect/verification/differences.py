"""The first tensor that differs, and by how much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def differences(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> Iterator[str]:
    """A sentence for each tensor that is not the expected one to the bit, in the order of `expected`."""
    for name, want in expected.items():
        got = actual.get(name)
        if got is None and want is None:
            continue
        if got is None or want is None:
            yield f"{name}: {'missing' if got is None else 'not missing'}, other than in the reference"
        elif got.shape != want.shape:
            yield f"{name}: shape {list(got.shape)} in place of {list(want.shape)}"
        elif not torch.equal(got, want):
            yield f"{name} {by_how_much(got, want)}"


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
