"""Gradients of keys and values of the fused attention, as a Triton kernel: see attention_backward_triton.py.

A program owns a tile of keys and walks over the rows of all the heads that share them. Scores are transposed, so that a
product's result is the next one's operand without leaving the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from megaselect.kernels.attention_tiles_triton import (
    KEY_STRIDES,
    QUERY_STRIDES,
    SCALARS,
    load_own_tile,
    load_tile,
    plane_and_tile,
    store_tile,
)
from megaselect.kernels.dropout_mask_triton import kept_tile_transposed, load_sample_transposed

GRAD_KEY_STRIDES = tuple(f"grad_{name}" for name in KEY_STRIDES)
GRAD_VALUE_STRIDES = ("grad_value_row", "grad_value_batch", "grad_value_group")


@triton.jit
def _slot_and_tile(step, tiles, SLOTS: tl.constexpr):
    if SLOTS == 1:
        return 0, step
    else:
        return step // tiles, step % tiles


@triton.jit
def _add_rows(
    grad_key, grad_value, key, value, query, grad_context, log_sum_exp, delta, plane,
    query_row, query_slot, context_row, first_row, first_column, rows, row_offset, column_offset,
    score_scale, sample, site, seed_low, seed_high,
    MASKED: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(grad_key, grad_value) [BLOCK_N, BLOCK_D] with what the rows from first_row (local) add."""
    query_tile = load_tile(query + query_slot, query_row, first_row, rows, MASKED, HEAD_SIZE, BLOCK_M, BLOCK_D)
    grad_corner = grad_context + plane * HEAD_SIZE
    grad_tile = load_tile(grad_corner, context_row, first_row, rows, MASKED, HEAD_SIZE, BLOCK_M, BLOCK_D)
    lane = tl.arange(0, BLOCK_M)
    row = first_row + lane
    log_sum_exp += plane * rows
    delta += plane * rows
    if MASKED:
        # Lanes are compared with scalars, so that no tensor of rows stays in registers.
        inside = (lane >= -first_row) & (lane < rows - first_row)
        statistic = tl.load(log_sum_exp + row, mask=inside, other=float("inf"))  # makes p = 0 outside
        subtrahend = tl.load(delta + row, mask=inside, other=0.0)
    else:
        statistic = tl.load(log_sum_exp + row)
        subtrahend = tl.load(delta + row)
    scores = tl.dot(key, tl.trans(query_tile), input_precision="ieee")  # [BLOCK_N, BLOCK_M]
    p = tl.exp2(scores * score_scale - statistic[None, :])
    if MASKED:
        # Columns outside need no comparison: what they make of p stays in rows of the sums that are not saved.
        ahead = first_column - first_row - (row_offset - column_offset)  # of the first column, to the first row
        dead = tl.arange(0, BLOCK_N)[:, None] + ahead > lane[None, :]
        p = tl.where(dead, 0.0, p)
    grad = tl.dot(value, tl.trans(grad_tile), input_precision="ieee")
    kept_p = p
    if THRESHOLD > 0:
        kept = kept_tile_transposed(
            row_offset + first_row, column_offset + first_column, sample, site, seed_low, seed_high,
            THRESHOLD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        # A product and a select: with two of either, Triton 3.9 takes all 255 registers at head size 80. No select
        # between constants: Triton 3.6 shares those of both loops, and converts the tile in the second.
        kept_p = p * kept.to(tl.float32)
        grad = tl.where(kept, grad, 0.0)
    grad_value = tl.dot(kept_p.to(grad_tile.dtype), grad_tile, grad_value, input_precision="ieee")
    grad_scores = p * (grad - subtrahend[None, :])
    grad_key = tl.dot(grad_scores.to(query_tile.dtype), query_tile, grad_key, input_precision="ieee")
    return grad_key, grad_value


@triton.jit
def _row_tiles(
    first_column, rows, row_offset, column_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """(origin, all, first, last): rows live in the column tile begin in tile 0, which begins at the local row `origin`.

    Tiles first..last are inside and live throughout.
    """
    row_lead = row_offset % 16
    diagonal = column_offset + first_column - row_offset  # the row whose last live column is the tile's first
    origin = tl.maximum(diagonal, -row_lead)
    count = tl.where(rows > origin, tl.cdiv(rows - origin, BLOCK_M), 0)
    above = tl.maximum(diagonal + BLOCK_N - 1 - origin, tl.where(origin < 0, 1, 0))  # rows not full
    first = tl.minimum(tl.cdiv(tl.maximum(above, 0), BLOCK_M), count)
    return origin, count, first, tl.maximum(tl.maximum(rows - origin, 0) // BLOCK_M, first)


@triton.jit(do_not_specialize=(*SCALARS, *QUERY_STRIDES, *KEY_STRIDES, *GRAD_KEY_STRIDES, *GRAD_VALUE_STRIDES))
def grad_key_value_kernel(
    query, key, value, grad_context, log_sum_exp, delta, sample_index, grad_key, grad_value, scale, score_scale,
    seed_low, seed_high, site, batch, heads, rows, columns, row_offset, column_offset, together,
    query_row, query_batch, query_group, query_slot, key_row, key_batch, key_group,
    grad_key_row, grad_key_batch, grad_key_group, grad_value_row, grad_value_batch, grad_value_group,
    UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, SLOTS: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EDGE_STAGES: tl.constexpr,
    SAMPLE_COPIES: tl.constexpr,
):  # fmt: skip
    """A program has one column tile of one group; early tiles, which have more rows, come first."""
    column_lead = column_offset % 64
    groups = heads // SLOTS
    plane, tile_index = plane_and_tile(tl.cdiv(column_lead + columns, BLOCK_N), batch * groups, together)
    first_column = tile_index * BLOCK_N - column_lead
    sample_number, group = (plane // groups).to(tl.int64), (plane % groups).to(tl.int64)
    query += (sample_number * query_batch + group * query_group) * UNIT
    key += (sample_number * key_batch + group * key_group) * UNIT
    value += (sample_number * key_batch + group * key_group) * UNIT
    context_row = batch * heads * HEAD_SIZE
    first_head = sample_number * heads + group * SLOTS
    site += (plane % groups) * SLOTS
    sample = load_sample_transposed(sample_index + sample_number, BLOCK_M, BLOCK_N, SAMPLE_COPIES)

    key_tile = load_own_tile(key, key_row * UNIT, first_column, columns, HEAD_SIZE, BLOCK_N, BLOCK_D)
    value_tile = load_own_tile(value, key_row * UNIT, first_column, columns, HEAD_SIZE, BLOCK_N, BLOCK_D)
    key_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    value_sum = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    origin, count, first, last = _row_tiles(first_column, rows, row_offset, column_offset, BLOCK_M, BLOCK_N)
    full = last - first
    edges = count - full
    # One loop over the rows of all the group's heads: nested loops would not leave enough registers.
    for step in tl.range(SLOTS * edges, num_stages=EDGE_STAGES):
        slot, tile = _slot_and_tile(step, edges, SLOTS)
        tile = tl.where(tile < first, tile, tile + full)
        key_sum, value_sum = _add_rows(
            key_sum, value_sum, key_tile, value_tile, query, grad_context, log_sum_exp, delta, first_head + slot,
            query_row * UNIT, query_slot * UNIT * slot, context_row, origin + tile * BLOCK_M, first_column,
            rows, row_offset, column_offset, score_scale, sample, site + slot, seed_low, seed_high,
            True, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for step in tl.range(SLOTS * full):
        slot, tile = _slot_and_tile(step, full, SLOTS)
        key_sum, value_sum = _add_rows(
            key_sum, value_sum, key_tile, value_tile, query, grad_context, log_sum_exp, delta, first_head + slot,
            query_row * UNIT, query_slot * UNIT * slot, context_row, origin + (first + tile) * BLOCK_M, first_column,
            rows, row_offset, column_offset, score_scale, sample, site + slot, seed_low, seed_high,
            False, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    keep_scale = 256 / (256 - THRESHOLD)
    grad_key += (sample_number * grad_key_batch + group * grad_key_group) * GRAD_UNIT
    grad_value += (sample_number * grad_value_batch + group * grad_value_group) * GRAD_UNIT
    store_tile(
        grad_key, grad_key_row * GRAD_UNIT, first_column, columns, key_sum * (scale * keep_scale),
        HEAD_SIZE, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    store_tile(
        grad_value, grad_value_row * GRAD_UNIT, first_column, columns, value_sum * keep_scale,
        HEAD_SIZE, BLOCK_N, BLOCK_D,
    )  # fmt: skip
