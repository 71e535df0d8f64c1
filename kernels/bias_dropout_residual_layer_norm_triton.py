"""Bias, dropout, residual and layer normalisation in one pass over the rows, forward and backward, as Triton kernels.

    out    = residual + keep * (x + bias) * keep_scale        normed = layer normalisation of out as rounded

Shapes: s sequence, b micro-batch, h hidden; x, residual, out, normed and their gradients are contiguous [s, b, h];
bias, weight and ln_bias are [h]. Bytes an element in 16 bit: forward reads 4 and writes 4, backward reads 6 and writes
4, and the mask's one where it is saved.

A program owns whole rows in the tensor's order, as the kernels of layer_norm_triton do, whose tiles, order of sums and
functions these share: so the bits are those of bias_dropout_residual_triton followed by layer_norm_triton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaselect.kernels import bias_dropout_residual_triton, layer_norm_triton
from megaselect.kernels.bias_dropout_residual_triton import scaled_where_kept
from megaselect.kernels.dropout_mask_triton import kept_rows, key_words
from megaselect.kernels.layer_norm_triton import (
    add_chunk,
    chunked_row_means,
    input_gradient,
    lane_counts,
    launch_options,
    load_channels,
    load_gradient,
    new_partials,
    normalise,
    normalise_chunks,
    row_means,
    row_statistics,
    store_partial,
    store_statistics,
    sum_partials,
)

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

# Values that change from run to run, layer to layer or rank to rank must not each compile a kernel of their own.
RUNTIME_SCALARS = ("seed_low", "seed_high", "site", "rows", "batch", "column_units", "row_offset", "column_blocks")


@triton.jit
def _kept(
    row, start, sample_index, seed_low, seed_high, site, rows, batch, row_offset, column_blocks,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bool [BLOCK_M, BLOCK_N]: the mask of these rows of [s*b, h], from the column `start`."""
    sample = tl.reshape(tl.minimum(row, rows - 1) % batch, [BLOCK_M, 1, 1])
    sample = tl.load(sample_index + sample + tl.zeros([BLOCK_M, BLOCK_N // 64, 4], tl.int32)).to(tl.uint32)
    position = tl.reshape(row // batch + row_offset, [BLOCK_M])
    return kept_rows(
        position, column_blocks * 64 + start, sample, site, seed_low, seed_high, THRESHOLD, BLOCK_M, BLOCK_N
    )


@triton.jit
def _store_sum(
    x, bias, residual, out, mask, sample_index, seed_low, seed_high, site, rows, batch, row_offset, column_blocks,
    row, start, lane, columns,
    THRESHOLD: tl.constexpr, SAVE_MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a tile of out (and mask), and return it as rounded, in fp32, 0 outside."""
    offset = row.to(tl.int64) * columns + start + lane
    inside = (row < rows) & (start + lane < columns)
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    value += load_channels(bias, start + lane, columns)
    if THRESHOLD > 0:
        kept = _kept(
            row, start, sample_index, seed_low, seed_high, site, rows, batch, row_offset, column_blocks,
            THRESHOLD, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        value = scaled_where_kept(value, kept, THRESHOLD)
        if SAVE_MASK:
            tl.store(mask + offset, -kept.to(tl.int8), mask=inside)
    value += tl.load(residual + offset, mask=inside, other=0.0).to(tl.float32)  # after the mask: kept_tile says why
    rounded = value.to(out.dtype.element_ty)
    tl.store(out + offset, rounded, mask=inside)
    return tl.where(inside, rounded.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _forward_kernel(
    x, bias, residual, weight, ln_bias, out, normed, mean, rstd, mask, sample_index,
    seed_low, seed_high, site, rows, batch, column_units, row_offset, column_blocks, epsilon,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, THRESHOLD: tl.constexpr, SAVE_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns = column_units * UNIT
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    lane = tl.arange(0, BLOCK_N)[None, :]
    offset = row.to(tl.int64) * columns + lane
    count = lane_counts(lane, columns, BLOCK_N)
    if WHOLE:
        value = _store_sum(
            x, bias, residual, out, mask, sample_index, seed_low, seed_high, site, rows, batch, row_offset,
            column_blocks, row, 0, lane, columns, THRESHOLD, SAVE_MASK, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        row_mean, row_rstd = row_statistics(value, 0.0, count, columns, epsilon)
        normalised = normalise(value, row_mean, row_rstd, weight, ln_bias, lane, columns)
        inside = (row < rows) & (lane < columns)
        tl.store(normed + offset, normalised.to(normed.dtype.element_ty), mask=inside)
    else:
        lane_mean, lane_square = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(0, columns, BLOCK_N):
            value = _store_sum(
                x, bias, residual, out, mask, sample_index, seed_low, seed_high, site, rows, batch, row_offset,
                column_blocks, row, start, lane, columns, THRESHOLD, SAVE_MASK, BLOCK_M, BLOCK_N,
            )  # fmt: skip
            inside = (row < rows) & (start + lane < columns)
            lane_mean, lane_square = add_chunk(value, inside, start // BLOCK_N + 1.0, lane_mean, lane_square)
        row_mean, row_rstd = row_statistics(lane_mean, lane_square, count, columns, epsilon)
        tl.debug_barrier()  # what other threads of the program wrote is read now
        normalise_chunks(out, normed, row_mean, row_rstd, weight, ln_bias, offset, row, lane, rows, columns, BLOCK_N)
    store_statistics(mean, rstd, row_mean, row_rstd, row, rows)


@triton.jit
def _load_direct(grad_out, offset, inside, HAS_GRAD_OUT: tl.constexpr):
    """The gradient that comes to out from elsewhere than the normalisation: before the row sums, so that none waits."""
    if HAS_GRAD_OUT:
        return tl.load(grad_out + offset, mask=inside, other=0.0)
    else:
        return 0.0


@triton.jit
def _store_gradients(
    grad_in, direct, grad_x, grad_residual, mask, sample_index, seed_low, seed_high, site, rows, batch, row_offset,
    column_blocks, row, start, lane, columns,
    HAS_GRAD_OUT: tl.constexpr, THRESHOLD: tl.constexpr, SAVED_MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write a tile of grad_residual and grad_x. Every gradient is rounded where the two ops round it."""
    offset = row.to(tl.int64) * columns + start + lane
    inside = (row < rows) & (start + lane < columns)
    total = grad_in.to(grad_residual.dtype.element_ty)
    if HAS_GRAD_OUT:
        total = (total.to(tl.float32) + direct.to(tl.float32)).to(grad_residual.dtype.element_ty)
    tl.store(grad_residual + offset, total, mask=inside)
    if THRESHOLD > 0:
        if SAVED_MASK:
            kept = tl.load(mask + offset, mask=inside, other=0) != 0
        else:
            kept = _kept(
                row, start, sample_index, seed_low, seed_high, site, rows, batch, row_offset, column_blocks,
                THRESHOLD, BLOCK_M, BLOCK_N,
            )  # fmt: skip
        dropped = scaled_where_kept(total.to(tl.float32), kept, THRESHOLD)
        tl.store(grad_x + offset, dropped.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=RUNTIME_SCALARS)
def _backward_kernel(
    grad_out, grad_normed, out, mean, rstd, weight, mask, sample_index, grad_x, grad_residual, partial,
    seed_low, seed_high, site, rows, batch, column_units, row_offset, column_blocks,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, HAS_GRAD_OUT: tl.constexpr, THRESHOLD: tl.constexpr,
    SAVED_MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns = column_units * UNIT
    lane = tl.arange(0, BLOCK_N)[None, :]
    if WHOLE:
        channel_weight = load_channels(weight, lane, columns)
        weight_sum, bias_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0)):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        offset = row.to(tl.int64) * columns + lane
        row_mean = tl.load(mean + row, mask=row < rows, other=0.0)
        row_rstd = tl.load(rstd + row, mask=row < rows, other=0.0)
        if WHOLE:
            inside = (row < rows) & (lane < columns)
            grad, normalised, scaled = load_gradient(
                grad_normed, out, channel_weight, row_mean, row_rstd, offset, inside
            )
            direct = _load_direct(grad_out, offset, inside, HAS_GRAD_OUT)
            scaled_mean, projected_mean = row_means(scaled, scaled * normalised, columns)
            grad_in = input_gradient(scaled, normalised, row_rstd, scaled_mean, projected_mean)
            _store_gradients(
                grad_in, direct, grad_x, grad_residual, mask, sample_index, seed_low, seed_high, site, rows, batch,
                row_offset, column_blocks, row, 0, lane, columns, HAS_GRAD_OUT, THRESHOLD, SAVED_MASK,
                BLOCK_M, BLOCK_N,
            )  # fmt: skip
            weight_sum += grad * normalised
            bias_sum += grad
        else:
            scaled_mean, projected_mean = chunked_row_means(
                grad_normed, out, weight, row_mean, row_rstd, offset, row, lane, rows, columns, BLOCK_M, BLOCK_N
            )
            for start in range(0, columns, BLOCK_N):
                inside = (row < rows) & (start + lane < columns)
                chunk_weight = load_channels(weight, start + lane, columns)
                grad, normalised, scaled = load_gradient(
                    grad_normed, out, chunk_weight, row_mean, row_rstd, offset + start, inside
                )
                direct = _load_direct(grad_out, offset + start, inside, HAS_GRAD_OUT)
                grad_in = input_gradient(scaled, normalised, row_rstd, scaled_mean, projected_mean)
                _store_gradients(
                    grad_in, direct, grad_x, grad_residual, mask, sample_index, seed_low, seed_high, site, rows,
                    batch, row_offset, column_blocks, row, start, lane, columns, HAS_GRAD_OUT, THRESHOLD, SAVED_MASK,
                    BLOCK_M, BLOCK_N,
                )  # fmt: skip
                store_partial(partial, grad * normalised, grad, start + lane, columns, ADD=True)
    if WHOLE:
        store_partial(partial, weight_sum, bias_sum, lane, columns, ADD=False)


def kernels_for(plane: Plane):
    """What has `forward` and `backward` for this plane: this module, or the two ops' where columns begin off the grid.

    A tile begins at a multiple of 64 global columns for the mask, and at the row's first for the order of its sums.
    """
    if plane.column_offset % 64 == 0:
        return Fused
    from megaselect.kernels.bias_dropout_residual_layer_norm import Pair

    return Pair(bias_dropout_residual_triton, layer_norm_triton)


class Fused:
    """Arguments and results as those of bias_dropout_residual_layer_norm.Pair; every [s, b, h] input is contiguous."""

    @staticmethod
    def forward(
        x: Tensor, bias: Tensor, residual: Tensor, weight: Tensor, ln_bias: Tensor, sample_index: Tensor,
        plane: Plane, epsilon: float, save_mask: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """(out, normed, mean, 1/standard deviation, mask or empty). A strided bias or residual is made contiguous."""
        out, normed = torch.empty_like(x), torch.empty_like(x)
        mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) for _ in range(2))
        mask = x.new_empty(x.shape if save_mask else (0,), dtype=torch.int8)
        options = launch_options(x.shape[-1], x.element_size(), "forward")
        grid = (triton.cdiv(mean.numel(), options["BLOCK_M"]),)
        inputs = (tensor.contiguous() for tensor in (x, bias, residual, weight, ln_bias))
        tensors = (*inputs, out, normed, mean, rstd, mask, sample_index)
        if x.numel() > 0:
            with torch.cuda.device_of(x):
                _forward_kernel[grid](
                    *tensors, *_scalars(x, plane, options), epsilon,
                    THRESHOLD=plane.threshold, SAVE_MASK=save_mask, **options,
                )  # fmt: skip
        return out, normed, mean, rstd, mask

    @staticmethod
    def backward(
        grad_out: Tensor | None, grad_normed: Tensor, out: Tensor, mean: Tensor, rstd: Tensor, mask: Tensor,
        sample_index: Tensor, weight: Tensor, ln_bias: Tensor, plane: Plane,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Gradients of (x, residual, weight, ln_bias); that of x empty without dropout."""
        grad_residual = torch.empty_like(out)
        grad_x = out.new_empty(out.shape if plane.threshold else (0,))
        grad_weight, grad_ln_bias = weight.new_empty(weight.shape), ln_bias.new_empty(ln_bias.shape)
        if out.numel() == 0:
            return grad_x, grad_residual, grad_weight.zero_(), grad_ln_bias.zero_()
        options = launch_options(out.shape[-1], out.element_size(), "backward")
        partial = new_partials(out, options)
        direct = grad_normed if grad_out is None else grad_out
        tensors = (direct, grad_normed, out, mean, rstd, weight.contiguous(), mask, sample_index, grad_x, grad_residual)
        flags = {"HAS_GRAD_OUT": grad_out is not None, "SAVED_MASK": mask.numel() > 0, "THRESHOLD": plane.threshold}
        with torch.cuda.device_of(out):
            _backward_kernel[(partial.shape[1],)](*tensors, partial, *_scalars(out, plane, options), **flags, **options)
            sum_partials(partial, grad_weight, grad_ln_bias)
        return grad_x, grad_residual, grad_weight, grad_ln_bias


def _scalars(x: Tensor, plane: Plane, options: dict[str, int | bool]) -> tuple[int, ...]:
    rows, batch, columns = x.shape
    sizes = (rows * batch, batch, columns // options["UNIT"])
    return *key_words(plane.seed), plane.site, *sizes, plane.row_offset, plane.column_offset // 64
