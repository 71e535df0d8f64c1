"""Backward of the fused attention (attention_triton.py): three Triton kernels, deterministic, without atomics.

With delta = rowsum(grad_context * context) and p recomputed from the log-sum-exp (Dao et al. 2022):
    grad_value  = keep_scale * (keep * p)ᵀ @ grad_context
    grad_scores = p * (keep_scale * keep * (grad_context @ valueᵀ) - delta)
    grad_query  = scale * grad_scores @ key,  grad_key = scale * grad_scoresᵀ @ query
The kernels divide grad_scores by the keep scale and multiply the results by it, so that one factor of 0 or 1 serves
both uses of the mask. The kernel in attention_grad_key_value_triton.py owns tiles of keys and walks over rows; the one
here owns tiles of rows and walks over columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaselect.kernels.attention_grad_key_value_triton import grad_key_value_kernel
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
    own_positions,
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

GRAD_QUERY_STRIDES = tuple(f"grad_{name}" for name in QUERY_STRIDES)
DELTA_ROWS, DELTA_WARPS = 64, 4


@triton.jit(do_not_specialize=["batch", "heads", "rows"])
def _delta_kernel(
    grad_context, context, delta, batch, heads, rows,
    THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """delta / keep_scale, fp32 [b, a, q]: BLOCK_M rows of one plane a program."""
    plane = tl.program_id(0) % (batch * heads)
    start = tl.program_id(0) // (batch * heads) * BLOCK_M
    offset, stride = plane.to(tl.int64) * HEAD_SIZE, batch * heads * HEAD_SIZE
    left = load_tile(grad_context + offset, stride, start, rows, True, HEAD_SIZE, BLOCK_M, BLOCK_D).to(tl.float32)
    right = load_tile(context + offset, stride, start, rows, True, HEAD_SIZE, BLOCK_M, BLOCK_D).to(tl.float32)
    row = start + tl.arange(0, BLOCK_M)
    values = tl.sum(left * right, 1) * ((256 - THRESHOLD) / 256)
    tl.store(delta + plane.to(tl.int64) * rows + row, values, mask=row < rows)


@triton.jit
def _add_columns(
    grad_query, query, grad_context, statistic, subtrahend, key, value, key_row,
    first_row, first_column, columns, row_offset, column_offset, score_scale, sample, site, seed_low, seed_high,
    MASKED: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad_query [BLOCK_M, BLOCK_D] with what the columns from first_column (local) add."""
    key_tile = load_tile(key, key_row, first_column, columns, MASKED, HEAD_SIZE, BLOCK_N, BLOCK_D)
    value_tile = load_tile(value, key_row, first_column, columns, MASKED, HEAD_SIZE, BLOCK_N, BLOCK_D)
    scores = tl.dot(query, tl.trans(key_tile), input_precision="ieee")
    p = tl.exp2(scores * score_scale - statistic[:, None])
    if MASKED:
        live = live_elements(first_row, first_column, columns, row_offset, column_offset, BLOCK_M, BLOCK_N)
        p = tl.where(live, p, 0.0)
    grad = tl.dot(grad_context, tl.trans(value_tile), input_precision="ieee")
    if THRESHOLD > 0:
        kept = kept_score_tile(
            row_offset + first_row, column_offset + first_column, sample, site, seed_low, seed_high,
            THRESHOLD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        grad = grad * tl.where(kept, 1.0, 0.0)
    grad_scores = p * (grad - subtrahend[:, None])
    return tl.dot(grad_scores.to(key_tile.dtype), key_tile, grad_query, input_precision="ieee")


@triton.jit(do_not_specialize=(*SCALARS, *QUERY_STRIDES, *KEY_STRIDES, *GRAD_QUERY_STRIDES))
def _grad_query_kernel(
    query, key, value, grad_context, log_sum_exp, delta, sample_index, grad_query, scale, score_scale,
    seed_low, seed_high, site, batch, heads, rows, columns, row_offset, column_offset, together,
    query_row, query_batch, query_group, query_slot, key_row, key_batch, key_group,
    grad_query_row, grad_query_batch, grad_query_group, grad_query_slot,
    UNIT: tl.constexpr, GRAD_UNIT: tl.constexpr, SLOTS: tl.constexpr, THRESHOLD: tl.constexpr, HEAD_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, EDGE_STAGES: tl.constexpr,
):  # fmt: skip
    """A program has one row tile of one plane; late tiles, which have more columns, come first."""
    row_lead, column_lead = row_offset % 16, column_offset % 64
    row_tiles = tl.cdiv(row_lead + rows, BLOCK_M)
    plane, rank = plane_and_tile(row_tiles, batch * heads, together)
    first_row = (row_tiles - 1 - rank) * BLOCK_M - row_lead
    sample_number, head = (plane // heads).to(tl.int64), plane % heads
    group, slot = (head // SLOTS).to(tl.int64), (head % SLOTS).to(tl.int64)
    query += (sample_number * query_batch + group * query_group + slot * query_slot) * UNIT
    key += (sample_number * key_batch + group * key_group) * UNIT
    value += (sample_number * key_batch + group * key_group) * UNIT
    key_row, site = key_row * UNIT, site + head
    sample = tl.load(sample_index + sample_number).to(tl.uint32)

    query_tile = load_own_tile(query, query_row * UNIT, first_row, rows, HEAD_SIZE, BLOCK_M, BLOCK_D)
    context_row, context_corner = batch * heads * HEAD_SIZE, plane.to(tl.int64) * HEAD_SIZE
    grad_tile = load_own_tile(
        grad_context + context_corner, context_row, first_row, rows, HEAD_SIZE, BLOCK_M, BLOCK_D
    )  # fmt: skip
    own_row = plane.to(tl.int64) * rows + own_positions(first_row, rows, BLOCK_M)
    statistic = tl.load(log_sum_exp + own_row)
    subtrahend = tl.load(delta + own_row)
    query_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    count, first, last = column_tiles(first_row, rows, columns, row_offset, column_offset, BLOCK_M, BLOCK_N)
    for tile in tl.range(first, last):
        query_sum = _add_columns(
            query_sum, query_tile, grad_tile, statistic, subtrahend, key, value, key_row,
            first_row, tile * BLOCK_N - column_lead, columns, row_offset, column_offset, score_scale,
            sample, site, seed_low, seed_high, False, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for step in tl.range(last, count + first, num_stages=EDGE_STAGES):
        tile = tl.where(step < count, step, step - count)
        query_sum = _add_columns(
            query_sum, query_tile, grad_tile, statistic, subtrahend, key, value, key_row,
            first_row, tile * BLOCK_N - column_lead, columns, row_offset, column_offset, score_scale,
            sample, site, seed_low, seed_high, True, THRESHOLD, HEAD_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    grad_query += (sample_number * grad_query_batch + group * grad_query_group + slot * grad_query_slot) * GRAD_UNIT
    store_tile(
        grad_query, grad_query_row * GRAD_UNIT, first_row, rows, query_sum * (scale * (256 / (256 - THRESHOLD))),
        HEAD_SIZE, BLOCK_M, BLOCK_D,
    )  # fmt: skip


def backward(
    grad_context: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    sample_index: Tensor,
    plane: Plane,
    scale: float,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Writes grad_query, grad_key and grad_value: strided views shaped like query, key and value, last stride 1.

    grad_context and context: contiguous [q, b, a*d]; the other arguments as `attention_triton.forward` takes and
    returns them. Raises ValueError as that does.
    """
    check(query, key, value, plane, scale)
    check(grad_query, grad_key, grad_value, plane, scale)
    key, value = alike(key, value)
    rows, batch, groups, slots, head_size = query.shape
    heads, columns = groups * slots, key.shape[0]
    delta = torch.empty_like(log_sum_exp)
    planes = batch * heads
    block_d = padded_head_size(head_size)
    unit, grad_unit = access_unit(query, key, value), access_unit(grad_query, grad_key, grad_value)
    inputs = (query, key, value, grad_context, log_sum_exp, delta, sample_index)
    scalars = (*key_words(plane.seed), plane.site, batch, heads, rows, columns, *plane[3:])
    input_strides = (*strides(query, unit), *strides(key, unit))
    constants = {"UNIT": unit, "GRAD_UNIT": grad_unit, "SLOTS": slots, "THRESHOLD": plane.threshold}
    constants |= {"HEAD_SIZE": head_size, "BLOCK_D": block_d}
    with torch.cuda.device_of(query):
        if grad_query.numel():
            _delta_kernel[(planes * triton.cdiv(rows, DELTA_ROWS),)](
                grad_context, context, delta, batch, heads, rows,
                THRESHOLD=plane.threshold, HEAD_SIZE=head_size, BLOCK_M=DELTA_ROWS, BLOCK_D=block_d,
                num_warps=DELTA_WARPS,
            )  # fmt: skip
        if grad_key.numel():
            tile = tile_for("grad_key_value", head_size, query.element_size())
            column_tiles = triton.cdiv(plane.column_offset % 64 + columns, tile.columns)
            grad_key_value_kernel[(batch * groups * column_tiles,)](
                *inputs, grad_key, grad_value, scale, scale * LOG2_E, *scalars, planes_together(batch * groups, query),
                *input_strides, *strides(grad_key, grad_unit), *strides(grad_value, grad_unit),
                **constants, SAMPLE_COPIES=max(32 * tile.warps * 32 // (tile.rows * tile.columns), 1), **tile.launch,
            )  # fmt: skip
        if grad_query.numel():
            tile = tile_for("grad_query", head_size, query.element_size())
            row_tiles = triton.cdiv(plane.row_offset % 16 + rows, tile.rows)
            _grad_query_kernel[(planes * row_tiles,)](
                *inputs, grad_query, scale, scale * LOG2_E, *scalars, planes_together(planes, key),
                *input_strides, *strides(grad_query, grad_unit),
                **constants, **tile.launch,
            )  # fmt: skip
