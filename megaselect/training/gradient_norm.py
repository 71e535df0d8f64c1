"""The 2-norm of all gradients, with bits that no layout of ranks can change.

Parameters are cut over ranks by rows (their first dimension), so a row is the unit: its squares are exact in fp64, and
they are added in an order that depends on the row's length alone. The sums of all rows are added as whole multiples of
two grids, fine enough that no fp64 sum of them rounds: any order over any ranks gives the same bits. What the finer
grid drops is below 2**-34 of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megaselect.distributed.distribution import alone

BLOCK_ELEMENTS = 1 << 18  # in fp64 at a time: fewer take longer on a CPU, more hold memory
_FP64_BITS = 53


def gradient_norm(gradients: Sequence[Tensor], total_rows: int, gather: Callable[[Tensor], Tensor] = alone) -> Tensor:
    """fp32 scalar from this rank's rows of the gradients, fp32, at least one; not finite where any of them is not.

    total_rows: of all ranks; a 1-dimensional tensor has a row for each element, a scalar one. gather: see Distribution.
    """
    rows = torch.cat([_row_sums(gradient) for gradient in gradients])
    largest = gather(rows.amax() if len(rows) else rows.new_zeros(())).amax()  # unlike a reduction's, torch's keeps NaN
    coarse, fine = _units(largest, total_rows)
    sums = gather(_multiples(rows, coarse, fine)).sum(0)
    total = sums[0] * coarse + sums[1] * fine
    return torch.where(largest.isfinite(), total.sqrt(), largest).float()


def rows_of(shape: Sequence[int]) -> int:
    """Rows of a tensor of that shape."""
    return shape[0] if shape else 1


def _row_sums(gradient: Tensor) -> Tensor:
    """fp64 [rows]: the sum of squares of each."""
    rows, width = rows_of(gradient.shape), math.prod(gradient.shape[1:])  # a rank may hold no row: -1 would not do
    by_row = gradient.detach().reshape(rows, width)
    count = max(BLOCK_ELEMENTS // max(width, 1), 1)
    sums = [_add_halves(block.double().square_()) for block in by_row.split(count)] if rows else []
    return torch.cat(sums) if sums else by_row.new_zeros(0, dtype=torch.float64)


def _add_halves(squares: Tensor) -> Tensor:
    """[rows] from [rows, width], which is written over. Element by element: a library's sum may depend on the rows."""
    width = squares.shape[1]
    while width > 1:
        half = width // 2
        squares[:, :half] += squares[:, width - half : width]
        width -= half
    return squares[:, 0].clone() if width else squares.sum(1)  # a view would hold all of it


def _units(largest: Tensor, total_rows: int) -> tuple[Tensor, Tensor]:
    """Of the two grids. As many multiples of one as there are rows, none above `largest`, stay below 2**53 in sum; so
    do as many multiples of the other, none above the first grid's unit.
    """
    bits = _FP64_BITS - total_rows.bit_length()
    exponent = torch.frexp(largest).exponent.long()  # of no use where it is not finite
    return _power_of_two(exponent - bits), _power_of_two(exponent - 2 * bits)


def _power_of_two(exponent: Tensor) -> Tensor:
    """fp64, exact: its bits. A library's exp2 may be off by the last one."""
    return ((exponent.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)


def _multiples(rows: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    """fp64 [2]: how many units of the coarse grid the rows have in sum, and of the fine one in what that leaves."""
    whole = (rows / coarse).round()
    rest = (rows - whole * coarse) / fine
    return torch.stack([whole.sum(), rest.round().sum()])
