"""Fused causal core attention with dropout (K2) as Triton kernels: forward here, backward in its own file.

Flash attention (Dao et al. 2022): scores, probs and mask exist only as tiles in registers; kept are the context and
each row's log-sum-exp. The mask is that of docs/dropout-mask.md, built where it is used, so no mask is saved either.
Shapes and tiles are described in attention_tiles_triton.py.

Multiplies and adds may be contracted here, unlike in softmax_dropout_triton: no value is computed by two kernels that
must agree to the bit, since every recompute setting runs this very kernel on the same input. Backward's probs differ
from forward's by rounding, as they come from the log-sum-exp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaselect.kernels.attention_backward_triton import backward
from megaselect.kernels.attention_tiles_triton import (
    KEY_STRIDES,
    LOG2_E,
    QUERY_STRIDES,
    SCALARS,
    access_unit,
    alike,
    check,
    column_tiles,
    live_elements,
    load_own_tile,
    load_tile,
    padded_head_size,
    plane_and_tile,
    planes_together,
    store_tile,
    strides,
    tile_for,
)
from megaselect.kernels.dropout_mask_triton import kept_score_tile, key_words

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

__all__ = ["backward", "forward"]


@triton.jit
def _add_tile(
    accumulator, highest, total, query, key, value, key_row, first_row, first_column, columns,
    row_offset, column_offset, score_scale, sample, site, seed_low, seed_high,
    MASKED: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: (accumulator, highest, total) with the columns from first_column (local)."""
    key_tile = load_tile(key, key_row, first_column, columns, MASKED, HEAD_SIZE, BLOCK_N, BLOCK_D)
    scores = tl.dot(query, tl.trans(key_tile), input_precision="ieee")
    if MASKED:
        live = live_elements(first_row, first_column, columns, row_offset, column_offset, BLOCK_M, BLOCK_N)
        scores = tl.where(live, scores, float("-inf"))
    risen = tl.maximum(highest, tl.max(scores, 1) * score_scale)
    p = tl.exp2(scores * score_scale - risen[:, None])
    shrink = tl.exp2(highest - risen)
    total = total * shrink + tl.sum(p, 1)  # of all probs: dropping comes after the softmax
    if THRESHOLD > 0:
        kept = kept_score_tile(
            row_offset + first_row, column_offset + first_column, sample, site, seed_low, seed_high,
            THRESHOLD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        p = p * tl.where(kept, 1.0, 0.0)  # a select would be moved onto 16 bits, where it costs twice as much
    value_tile = load_tile(value, key_row, first_column, columns, MASKED, HEAD_SIZE, BLOCK_N, BLOCK_D)
    accumulator = accumulator * shrink[:, None]
    accumulator = tl.dot(p.to(value_tile.dtype), value_tile, accumulator, input_precision="ieee")
    return accumulator, risen, total


@triton.jit(do_not_specialize=(*SCALARS, *QUERY_STRIDES, *KEY_STRIDES))
def _forward_kernel(
    query, key, value, context, log_sum_exp, sample_index, score_scale,
    seed_low, seed_high, site, batch, heads, rows, columns, row_offset, column_offset, together,
    query_row, query_batch, query_group, query_slot, key_row, key_batch, key_group,
    UNIT: tl.constexpr, SLOTS: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EDGE_STAGES: tl.constexpr,
):  # fmt: skip
    """A program has one row tile of one plane (sample and head); late tiles, which have more columns, come first."""
    row_lead, column_lead = row_offset % 16, column_offset % 64
    row_tiles = tl.cdiv(row_lead + rows, BLOCK_M)
    plane, rank = plane_and_tile(row_tiles, batch * heads, together)
    first_row = (row_tiles - 1 - rank) * BLOCK_M - row_lead
    sample_number, head = plane // heads, plane % heads
    group, slot = head // SLOTS, head % SLOTS
    query += (sample_number.to(tl.int64) * query_batch + group.to(tl.int64) * query_group + slot * query_slot) * UNIT
    key += (sample_number.to(tl.int64) * key_batch + group.to(tl.int64) * key_group) * UNIT
    value += (sample_number.to(tl.int64) * key_batch + group.to(tl.int64) * key_group) * UNIT
    key_row, site = key_row * UNIT, site + head
    sample = tl.load(sample_index + sample_number).to(tl.uint32)

    query_tile = load_own_tile(query, query_row * UNIT, first_row, rows, HEAD_SIZE, BLOCK_M, BLOCK_D)
    highest = tl.full([BLOCK_M], -3.4028234663852886e38, tl.float32)  # finite, so that dead rows make no inf - inf
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    count, first, last = column_tiles(first_row, rows, columns, row_offset, column_offset, BLOCK_M, BLOCK_N)
    for tile in tl.range(first, last):
        accumulator, highest, total = _add_tile(
            accumulator, highest, total, query_tile, key, value, key_row,
            first_row, tile * BLOCK_N - column_lead, columns, row_offset, column_offset, score_scale,
            sample, site, seed_low, seed_high, False, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for step in tl.range(last, count + first, num_stages=EDGE_STAGES):
        tile = tl.where(step < count, step, step - count)
        accumulator, highest, total = _add_tile(
            accumulator, highest, total, query_tile, key, value, key_row,
            first_row, tile * BLOCK_N - column_lead, columns, row_offset, column_offset, score_scale,
            sample, site, seed_low, seed_high, True, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    dead = total == 0.0  # a live row has a prob of 1 before it is divided by the sum
    accumulator = accumulator * ((256 / (256 - THRESHOLD)) / tl.where(dead, 1.0, total))[:, None]
    corner = context + plane.to(tl.int64) * HEAD_SIZE
    store_tile(corner, batch * heads * HEAD_SIZE, first_row, rows, accumulator, HEAD_SIZE, BLOCK_M, BLOCK_D)
    row = first_row + tl.arange(0, BLOCK_M)
    # Infinity makes backward's probs of a dead row 0.
    statistic = tl.where(dead, float("inf"), highest + tl.log2(tl.where(dead, 1.0, total)))
    tl.store(log_sum_exp + plane.to(tl.int64) * rows + row, statistic, mask=(row >= 0) & (row < rows))


def forward(
    query: Tensor, key: Tensor, value: Tensor, sample_index: Tensor, plane: Plane, scale: float
) -> tuple[Tensor, Tensor]:
    """(context [q, b, a*d], log_sum_exp fp32 [b, a, q]) of causal attention with dropout, a = g*n.

    query: [q, b, g, n, d]; key, value: [k, b, g, d]; strided views whose last stride is 1. sample_index: int64 [b].
    plane.site belongs to head 0, and head group*n + slot is at site + head. log_sum_exp has base 2 and covers the
    scaled scores of live columns; a row without one has context 0 and log_sum_exp +inf.
    Raises ValueError for a head size above 128, a scale that is not positive and finite, or another dtype or layout.
    """
    check(query, key, value, plane, scale)
    key, value = alike(key, value)
    rows, batch, groups, slots, head_size = query.shape
    heads = groups * slots
    context = query.new_empty(rows, batch, heads * head_size)
    log_sum_exp = query.new_empty(batch, heads, rows, dtype=torch.float32)
    if context.numel() == 0:
        return context, log_sum_exp
    tile = tile_for("forward", head_size, query.element_size())
    row_tiles = triton.cdiv(plane.row_offset % 16 + rows, tile.rows)
    unit = access_unit(query, key, value)
    with torch.cuda.device_of(query):
        _forward_kernel[(batch * heads * row_tiles,)](
            query, key, value, context, log_sum_exp, sample_index, scale * LOG2_E,
            *key_words(plane.seed), plane.site, batch, heads, rows, key.shape[0],
            plane.row_offset, plane.column_offset, planes_together(batch * heads, key),
            *strides(query, unit), *strides(key, unit),
            UNIT=unit, SLOTS=slots, THRESHOLD=plane.threshold, HEAD_SIZE=head_size,
            BLOCK_D=padded_head_size(head_size),
            **tile.launch,
        )  # fmt: skip
    return context, log_sum_exp
