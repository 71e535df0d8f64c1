"""Bias, dropout and residual addition in one pass, forward and backward, as Triton kernels.

    out = residual + keep * (x + bias) * keep_scale        grad_x = keep * keep_scale * grad_out

Shapes: s sequence, b micro-batch, h hidden; x, residual, out and grad_out are contiguous [s, b, h], bias is [h]. The
mask plane of a sample has token positions as rows and channels as columns. Arithmetic is fp32, rounded once, in the
order written and without contraction of multiply and add, so the bits do not depend on whether the mask is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaselect.kernels.dropout_mask_triton import (
    access_unit,
    kept_tile,
    key_words,
    load_sample,
    tile_rows,
    tile_shape,
)

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
# Values that change from run to run, layer to layer or rank to rank must not each compile a kernel of their own.
RUNTIME_SCALARS = (
    "seed_low",
    "seed_high",
    "site",
    "rows",
    "batch",
    "column_units",
    "row_offset",
    "column_offset_units",
)


@triton.jit
def _place(rows, batch, columns, row_offset, column_lead, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(sample, tile of rows, local column of the tile's edge, element offsets, which lie inside) of this program."""
    row_lead = row_offset % 16
    column_tiles = tl.cdiv(column_lead + columns, BLOCK_N)
    program = tl.program_id(0)
    start = program % column_tiles * BLOCK_N - column_lead
    sample = program // column_tiles % batch
    tile = program // column_tiles // batch
    row = (tile_rows(tile, BLOCK_M) - row_lead)[:, None]
    column = start + tl.arange(0, BLOCK_N)[None, :]
    offset = (row.to(tl.int64) * batch + sample) * columns + column
    return sample, tile, start, offset, (row >= 0) & (row < rows) & (column >= 0) & (column < columns)


@triton.jit
def scaled_where_kept(value, kept, THRESHOLD: tl.constexpr):
    """fp32: value * keep_scale where kept, else 0."""
    return tl.where(kept, value * (256 / (256 - THRESHOLD)), 0.0)


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _forward_kernel(
    x, bias, residual, out, mask, sample_index,
    seed_low, seed_high, site, rows, batch, column_units, row_offset, column_offset_units,
    UNIT: tl.constexpr, THRESHOLD: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    SAVE_MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns, column_offset = column_units * UNIT, column_offset_units * UNIT
    column_lead = column_offset_units % (64 // UNIT) * UNIT
    sample, tile, start, offset, inside = _place(rows, batch, columns, row_offset, column_lead, BLOCK_M, BLOCK_N)
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        channel = start + tl.arange(0, BLOCK_N)[None, :]
        value += tl.load(bias + channel, mask=(channel >= 0) & (channel < columns), other=0.0).to(tl.float32)
    if THRESHOLD > 0:
        kept = kept_tile(
            tile, row_offset, column_offset + start, load_sample(sample_index + sample, BLOCK_M, BLOCK_N),
            site, seed_low, seed_high, THRESHOLD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        value = scaled_where_kept(value, kept, THRESHOLD)
        if SAVE_MASK:
            tl.store(mask + offset, -kept.to(tl.int8), mask=inside)
    if HAS_RESIDUAL:
        value += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offset, value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _backward_kernel(
    grad_out, mask, grad_x, sample_index,
    seed_low, seed_high, site, rows, batch, column_units, row_offset, column_offset_units,
    UNIT: tl.constexpr, THRESHOLD: tl.constexpr, SAVED_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns, column_offset = column_units * UNIT, column_offset_units * UNIT
    column_lead = column_offset_units % (64 // UNIT) * UNIT
    sample, tile, start, offset, inside = _place(rows, batch, columns, row_offset, column_lead, BLOCK_M, BLOCK_N)
    grad = tl.load(grad_out + offset, mask=inside, other=0.0).to(tl.float32)
    if THRESHOLD > 0:
        if SAVED_MASK:
            kept = tl.load(mask + offset, mask=inside, other=0) != 0
        else:
            kept = kept_tile(
                tile, row_offset, column_offset + start, load_sample(sample_index + sample, BLOCK_M, BLOCK_N),
                site, seed_low, seed_high, THRESHOLD, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        grad = scaled_where_kept(grad, kept, THRESHOLD)
    tl.store(grad_x + offset, grad.to(grad_x.dtype.element_ty), mask=inside)


def forward(
    x: Tensor, bias: Tensor | None, residual: Tensor | None, sample_index: Tensor, plane: Plane, save_mask: bool
) -> tuple[Tensor, Tensor]:
    """(out, mask): out [s, b, h] in x's dtype; mask int8 [s, b, h], -1 where kept, 0 where dropped, or empty.

    sample_index: int64 [b]. A strided bias or residual is made contiguous.
    """
    out = torch.empty_like(x)
    mask = x.new_empty(x.shape if save_mask else (0,), dtype=torch.int8)
    tensors = (x, x if bias is None else bias.contiguous(), x if residual is None else residual.contiguous(), out, mask)
    options = {"HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None, "SAVE_MASK": save_mask}
    _launch(_forward_kernel, tensors, sample_index, plane, **options)
    return out, mask


def backward(grad_out: Tensor, sample_index: Tensor, plane: Plane, mask: Tensor) -> Tensor:
    """grad_x [s, b, h] from the saved mask, or where `mask` is empty from the sample index."""
    grad_x = torch.empty_like(grad_out)
    _launch(_backward_kernel, (grad_out, mask, grad_x), sample_index, plane, SAVED_MASK=mask.numel() > 0)
    return grad_x


def _launch(kernel, tensors: tuple[Tensor, ...], sample_index: Tensor, plane: Plane, **options: bool) -> None:
    rows, batch, columns = tensors[0].shape
    unit = access_unit(columns, plane.column_offset, tensors[0].element_size())
    block_m, block_n = tile_shape(columns, unit)
    tiles = triton.cdiv(plane.row_offset % 16 + rows, 16) * (16 // block_m)
    tiles *= triton.cdiv(plane.column_offset % 64 + columns, block_n)
    if tensors[0].numel() == 0:
        return
    with torch.cuda.device_of(tensors[0]):
        kernel[(batch * tiles,)](
            *tensors, sample_index, *key_words(plane.seed), plane.site, rows, batch, columns // unit,
            plane.row_offset, plane.column_offset // unit,
            UNIT=unit, THRESHOLD=plane.threshold, **options, BLOCK_M=block_m, BLOCK_N=block_n, **LAUNCH,
        )  # fmt: skip
