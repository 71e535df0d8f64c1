"""Causal softmax and dropout of scores that stay in memory, forward and backward (K1), as Triton kernels.

Shapes: b micro-batch, a heads, q query and k key positions. Element (i, j) is live where column_offset + j <=
row_offset + i; the rest is never used and is written as zeros. The kernels move 3 bytes a score forward (16 bit,
causal: half of the scores read, all dropped probs written) and 6 backward. softmax_dropout.py has the op and says what
is saved.

A program owns a few rows of one plane, late (long) rows first, and walks over them in chunks of columns. Forward does
so twice: an online maximum and sum that each thread holds for itself, then probs. The second reading should come from
the cache, so it runs backwards, and results are written as streams. No autotuning: the tile and with it the order of
sums follow from the width.

Every kernel gets its probs from `_probs`, and all are compiled without contraction of multiply and add, so that
recomputed probs equal saved ones to the bit.
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
    tile_first_row,
    tile_rows,
    tile_shape,
)

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

LOG2_E = tl.constexpr(1.4426950408889634)
LAUNCH = {"num_warps": 4, "enable_fp_fusion": False}
# Values that change from run to run, layer to layer or rank to rank must not each compile a kernel of their own.
RUNTIME_SCALARS = (
    "seed_low", "seed_high", "site", "heads", "rows", "column_units", "row_offset", "column_offset_units",
)  # fmt: skip


@triton.jit
def _exponential(x, row_max):
    """exp(x - row_max): a difference, a product and ex2, which leave nothing to contract."""
    return tl.exp2((x - row_max) * LOG2_E)


@triton.jit
def _probs(x, row_max, inverse_sum):
    """Softmax from fp32 scores and row statistics: the only place that computes it."""
    return _exponential(x, row_max) * inverse_sum


@triton.jit
def _program(rows, columns, row_offset, column_offset, BLOCK_M: tl.constexpr):
    """(plane, tile, first row, row int32 [BLOCK_M], in_rows, live int32 [BLOCK_M], fewest live, most live).

    Rows are local, some of them outside of the tensor where offset or size is no multiple of 16. `live` counts a row's
    live columns; the scalars bound it for the rows inside.
    """
    lead = row_offset % 16
    tiles = tl.cdiv(lead + rows, 16) * (16 // BLOCK_M)
    plane = tl.program_id(0) // tiles
    tile = tiles - 1 - tl.program_id(0) % tiles
    row = tile_rows(tile, BLOCK_M) - lead
    in_rows = (row >= 0) & (row < rows)
    before = row_offset - column_offset + 1
    live = tl.where(in_rows, tl.minimum(tl.maximum(row + before, 0), columns), 0)
    first = tile_first_row(tile, BLOCK_M) - lead
    last = tl.minimum(first + 7 + BLOCK_M // 2, rows - 1)
    fewest = tl.minimum(tl.maximum(tl.maximum(first, 0) + before, 0), columns)
    most = tl.minimum(tl.maximum(last + before, 0), columns)
    return plane, tile, first, row, in_rows, live, fewest, most


@triton.jit
def _load_units(corner, offset, start, live, DEAD: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] from column `start`: each unit (16 bytes of scores) with a live element, DEAD elsewhere."""
    column = start + tl.arange(0, BLOCK_N)[None, :]
    end = (live[:, None] + UNIT - 1) // UNIT * UNIT
    return tl.load(corner + (offset + column), mask=(column >= 0) & (column < end), other=DEAD)


@triton.jit
def _load_live(corner, offset, start, live, fewest, DEAD: tl.constexpr, UNIT: tl.constexpr, BLOCK_N: tl.constexpr):
    """The same in fp32 with DEAD in every dead element, whatever memory holds there."""
    x = _load_units(corner, offset, start, live, DEAD, UNIT, BLOCK_N).to(tl.float32)
    if start + BLOCK_N > fewest:
        x = tl.where(start + tl.arange(0, BLOCK_N)[None, :] < live[:, None], x, DEAD)
    return x


@triton.jit
def _store(corner, offset, start, values, in_rows, columns, BLOCK_N: tl.constexpr):
    column = start + tl.arange(0, BLOCK_N)[None, :]
    tl.store(
        corner + (offset + column),
        values,
        mask=in_rows[:, None] & (column >= 0) & (column < columns),
        cache_modifier=".cs",
    )


@triton.jit
def _row_statistics(
    scores, offset, chunks, column_lead, live, fewest, UNIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(row max, 1 / sum of exponentials) [BLOCK_M], both 0 for a row without a live column."""
    GROUPS: tl.constexpr = BLOCK_N // UNIT
    highest = tl.full([BLOCK_M, GROUPS], float("-inf"), tl.float32)  # of the columns that a thread has seen so far
    total = tl.zeros([BLOCK_M, GROUPS], tl.float32)
    for chunk in range(chunks):
        x = _load_live(scores, offset, chunk * BLOCK_N - column_lead, live, fewest, float("-inf"), UNIT, BLOCK_N)
        x = tl.reshape(x, [BLOCK_M, GROUPS, UNIT])
        risen = tl.maximum(highest, tl.max(x, 2))
        base = tl.where(risen == float("-inf"), 0.0, risen)  # -inf minus itself would be NaN
        total = total * _exponential(highest, base) + tl.sum(_exponential(x, base[:, :, None]), 2)
        highest = risen
    row_max = tl.max(highest, 1)
    dead = row_max == float("-inf")
    row_max = tl.where(dead, 0.0, row_max)
    row_sum = tl.sum(total * _exponential(highest, row_max[:, None]), 1)
    return row_max, tl.where(dead, 0.0, tl.div_rn(1.0, tl.where(dead, 1.0, row_sum)))


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _forward_kernel(
    scores, dropped, row_max, inverse_sum, probs, mask, sample_index,
    seed_low, seed_high, site, heads, rows, column_units, row_offset, column_offset_units,
    UNIT: tl.constexpr, THRESHOLD: tl.constexpr, SAVE_PROBS: tl.constexpr, SAVE_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns, column_offset = column_units * UNIT, column_offset_units * UNIT
    column_lead = column_offset_units % (64 // UNIT) * UNIT
    plane, tile, first, row, in_rows, live, fewest, most = _program(rows, columns, row_offset, column_offset, BLOCK_M)
    line = plane.to(tl.int64) * rows + row
    corner = (plane.to(tl.int64) * rows + first) * columns
    offset = (row - first)[:, None] * columns
    live_chunks = tl.cdiv(most + column_lead, BLOCK_N)

    maximum, inverse = _row_statistics(
        scores + corner, offset, live_chunks, column_lead, live, fewest, UNIT, BLOCK_M, BLOCK_N
    )
    tl.store(row_max + line, maximum, mask=in_rows)
    tl.store(inverse_sum + line, inverse, mask=in_rows)

    sample = load_sample(sample_index + plane // heads, BLOCK_M, BLOCK_N)
    for step in range(live_chunks):
        start = (live_chunks - 1 - step) * BLOCK_N - column_lead
        x = _load_live(scores + corner, offset, start, live, fewest, float("-inf"), UNIT, BLOCK_N)
        if SAVE_PROBS:
            p = _probs(x, maximum[:, None], inverse[:, None]).to(scores.dtype.element_ty)
            _store(probs + corner, offset, start, p, in_rows, columns, BLOCK_N)
        if THRESHOLD > 0:
            kept = kept_tile(
                tile, row_offset, column_offset + start, sample, site + plane % heads, seed_low, seed_high,
                THRESHOLD, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            # Dropping the score gives the same 0 as dropping its prob, which the compiler would do on pairs of 16 bits.
            x = tl.where(kept, x, float("-inf"))
            if SAVE_MASK:
                _store(mask + corner, offset, start, -(x != float("-inf")).to(tl.int8), in_rows, columns, BLOCK_N)
        p = _probs(x, maximum[:, None], inverse[:, None]).to(scores.dtype.element_ty)
        _store(dropped + corner, offset, start, p, in_rows, columns, BLOCK_N)

    for chunk in range(live_chunks, tl.cdiv(columns + column_lead, BLOCK_N)):
        start = chunk * BLOCK_N - column_lead
        zeros = tl.zeros([BLOCK_M, BLOCK_N], scores.dtype.element_ty)
        _store(dropped + corner, offset, start, zeros, in_rows, columns, BLOCK_N)
        if SAVE_PROBS:
            _store(probs + corner, offset, start, zeros, in_rows, columns, BLOCK_N)
        if SAVE_MASK:
            _store(mask + corner, offset, start, zeros.to(tl.int8), in_rows, columns, BLOCK_N)


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _backward_kernel(
    grad, delta, source, row_max, inverse_sum, mask, dropped, sample_index,
    seed_low, seed_high, site, heads, rows, column_units, row_offset, column_offset_units,
    UNIT: tl.constexpr, THRESHOLD: tl.constexpr, FROM_PROBS: tl.constexpr, SAVED_MASK: tl.constexpr,
    WRITE_DROPPED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """grad: of the dropped probs, overwritten by that of the scores; source: scores or probs."""
    columns, column_offset = column_units * UNIT, column_offset_units * UNIT
    column_lead = column_offset_units % (64 // UNIT) * UNIT
    plane, tile, first, row, in_rows, live, fewest, most = _program(rows, columns, row_offset, column_offset, BLOCK_M)
    line = plane.to(tl.int64) * rows + row
    corner = (plane.to(tl.int64) * rows + first) * columns
    offset = (row - first)[:, None] * columns
    live_chunks = tl.cdiv(most + column_lead, BLOCK_N)

    subtrahend = tl.load(delta + line, mask=in_rows, other=0.0)
    if not FROM_PROBS:
        maximum = tl.load(row_max + line, mask=in_rows, other=0.0)
        inverse = tl.load(inverse_sum + line, mask=in_rows, other=0.0)
    sample = load_sample(sample_index + plane // heads, BLOCK_M, BLOCK_N)
    for chunk in range(live_chunks):
        start = chunk * BLOCK_N - column_lead
        if FROM_PROBS:
            p = _load_units(source + corner, offset, start, live, 0.0, UNIT, BLOCK_N).to(tl.float32)
        else:
            x = _load_live(source + corner, offset, start, live, fewest, float("-inf"), UNIT, BLOCK_N)
            p = _probs(x, maximum[:, None], inverse[:, None])
            p = p.to(source.dtype.element_ty).to(tl.float32)  # as rounded as saved probs are
        g = _load_live(grad + corner, offset, start, live, fewest, 0.0, UNIT, BLOCK_N)
        kept_p = p
        if THRESHOLD > 0:
            if SAVED_MASK:
                kept = _load_units(mask + corner, offset, start, live, 0, UNIT, BLOCK_N) != 0
            else:
                kept = kept_tile(
                    tile, row_offset, column_offset + start, sample, site + plane % heads, seed_low, seed_high,
                    THRESHOLD, BLOCK_M, BLOCK_N,
                )  # fmt: skip
            g = tl.where(kept, g, 0.0)
            kept_p = p * tl.where(kept, 1.0, 0.0)  # a select would be moved onto 16 bits, where it costs twice as much
        grad_scores = p * (g - subtrahend[:, None])
        _store(grad + corner, offset, start, grad_scores.to(grad.dtype.element_ty), in_rows, columns, BLOCK_N)
        if WRITE_DROPPED:
            _store(dropped + corner, offset, start, kept_p.to(source.dtype.element_ty), in_rows, columns, BLOCK_N)

    for chunk in range(live_chunks, tl.cdiv(columns + column_lead, BLOCK_N)):
        start = chunk * BLOCK_N - column_lead
        zeros = tl.zeros([BLOCK_M, BLOCK_N], grad.dtype.element_ty)
        _store(grad + corner, offset, start, zeros, in_rows, columns, BLOCK_N)
        if WRITE_DROPPED:
            _store(dropped + corner, offset, start, zeros, in_rows, columns, BLOCK_N)


def forward(
    scores: Tensor, sample_index: Tensor, plane: Plane, save_probs: bool, save_mask: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dropped, row_max, inverse_sum, probs, mask) of contiguous scores [b, a, q, k]; sample_index int64 [b].

    dropped and probs have the scores' shape and dtype and are not scaled by the keep scale; row_max and inverse_sum are
    fp32 [b, a, q], 0 for a row without a live column; mask is int8, -1 where kept, 0 where dropped, dead or -inf (whose
    prob is 0 either way). What is not saved is returned empty. plane.site belongs to head 0.
    """
    dropped = torch.empty_like(scores)
    row_max = scores.new_empty(scores.shape[:-1], dtype=torch.float32)
    inverse_sum = torch.empty_like(row_max)
    probs = torch.empty_like(scores) if save_probs else scores.new_empty(0)
    mask = scores.new_empty(scores.shape if save_mask else (0,), dtype=torch.int8)
    tensors = (scores, dropped, row_max, inverse_sum, probs, mask, sample_index)
    _launch(_forward_kernel, tensors, scores, plane, SAVE_PROBS=save_probs, SAVE_MASK=save_mask)
    return dropped, row_max, inverse_sum, probs, mask


def backward(
    grad_dropped: Tensor,
    delta: Tensor,
    sample_index: Tensor,
    plane: Plane,
    *,
    scores: Tensor,
    row_max: Tensor,
    inverse_sum: Tensor,
    probs: Tensor,
    mask: Tensor,
    write_dropped: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_scores, dropped or empty); grad_dropped [b, a, q, k], contiguous, is overwritten and returned.

    Probs come from `probs`, or where that is empty from scores, row_max and inverse_sum; the mask from `mask`, or where
    that is empty from the sample index. delta: fp32 [b, a, q]. Dead elements of grad_dropped may hold anything.
    """
    from_probs = probs.numel() > 0
    if from_probs and plane.threshold == 0:
        write_dropped = False  # dropped probs are the probs
    dropped = torch.empty_like(grad_dropped) if write_dropped else probs
    source = probs if from_probs else scores
    tensors = (grad_dropped, delta, source, row_max, inverse_sum, mask, dropped, sample_index)
    options = {"FROM_PROBS": from_probs, "SAVED_MASK": mask.numel() > 0, "WRITE_DROPPED": write_dropped}
    _launch(_backward_kernel, tensors, grad_dropped, plane, **options)
    return grad_dropped, dropped


def _launch(kernel, tensors: tuple[Tensor, ...], like: Tensor, plane: Plane, **options: bool) -> None:
    batch, heads, rows, columns = like.shape
    unit = access_unit(columns, plane.column_offset, like.element_size())
    block_m, block_n = tile_shape(columns, unit)
    tiles = triton.cdiv(plane.row_offset % 16 + rows, 16) * (16 // block_m)
    if like.numel() == 0:
        return
    with torch.cuda.device_of(like):
        kernel[(batch * heads * tiles,)](
            *tensors, *key_words(plane.seed), plane.site, heads, rows, columns // unit,
            plane.row_offset, plane.column_offset // unit,
            UNIT=unit, THRESHOLD=plane.threshold, **options, BLOCK_M=block_m, BLOCK_N=block_n, **LAUNCH,
        )  # fmt: skip
