"""Layer normalisation over the last dimension, forward and backward, as Triton kernels.

Shapes: n rows, h columns; x, out and their gradients are contiguous [n, h], weight and bias [h], statistics fp32 [n].
Arithmetic is fp32, rounded once, without contraction of multiply and add. A program owns whole rows, and holds them in
registers up to the width of `tile_shape`'s table; wider ones it reads in chunks, again for every pass. Chunks are added
lane by lane and the lanes of a row once, in the order that the tile's layout sets. Kernels that must agree to the bit
therefore share the functions here and the table.

Gradients of weight and bias: each of a fixed number of programs adds its rows into one row of fp32 partial sums, and a
second kernel adds those in order. No atomics, and nothing that depends on the GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaselect.kernels.dropout_mask_triton import access_unit

MAX_WARPS = 16
CHUNK_ROWS, CHUNK_WARPS = 4, 8
# In all, so partial sums stay few beside the rows: 16 for each multiprocessor of a Hopper GPU.
BACKWARD_WARPS = 132 * 16
SUM_BLOCK_M, SUM_BLOCK_N = 32, 32
OPTIONS = {"enable_fp_fusion": False}
ELEMENTS_A_THREAD = {"forward": {8: 32, 4: 16, 1: 4}, "backward": {8: 16, 4: 8, 1: 8}}  # by access_unit


@triton.jit
def add_chunk(value, inside, count, lane_mean, lane_square):
    """A lane's mean and sum of squared deviations with one value more, its count-th (Welford 1962), where inside."""
    delta = value - lane_mean
    mean = lane_mean + delta / count
    square = lane_square + delta * (value - mean)
    return tl.where(inside, mean, lane_mean), tl.where(inside, square, lane_square)


@triton.jit
def row_statistics(lane_mean, lane_square, count, columns, epsilon):
    """(mean, 1/standard deviation), fp32 [BLOCK_M, 1], from what the lanes [BLOCK_M, BLOCK_N] hold (Chan et al. 1979).

    count: how many values of the row a lane has seen, fp32. Of one value the mean is it and the square 0.
    """
    mean = tl.sum(lane_mean * count, axis=1, keep_dims=True) / columns
    deviation = lane_mean - mean
    square = tl.sum(lane_square + deviation * deviation * count, axis=1, keep_dims=True)
    return mean, tl.rsqrt(square / columns + epsilon)


@triton.jit
def lane_counts(lane, columns, BLOCK_N: tl.constexpr):
    """fp32, like `lane`: how many of the columns lane, lane + BLOCK_N, ... there are."""
    return tl.where(lane < columns, tl.cdiv(columns - lane, BLOCK_N), 0).to(tl.float32)


@triton.jit
def load_channels(vector, column, columns):
    """fp32, like `column`: the elements of a vector [h]."""
    return tl.load(vector + column, mask=column < columns, other=0.0).to(tl.float32)


@triton.jit
def normalise(value, mean, rstd, weight, bias, column, columns):
    return (value - mean) * rstd * load_channels(weight, column, columns) + load_channels(bias, column, columns)


@triton.jit
def store_statistics(mean, rstd, row_mean, row_rstd, row, rows):
    tl.store(mean + row, row_mean, mask=row < rows)
    tl.store(rstd + row, row_rstd, mask=row < rows)


@triton.jit(do_not_specialize=["rows", "column_units"])
def _forward_kernel(
    x, weight, bias, out, mean, rstd, rows, column_units, epsilon,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns = column_units * UNIT
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    column = tl.arange(0, BLOCK_N)[None, :]
    offset = row.to(tl.int64) * columns + column
    if WHOLE:
        inside = (row < rows) & (column < columns)
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        row_mean, row_rstd = row_statistics(value, 0.0, lane_counts(column, columns, BLOCK_N), columns, epsilon)
        normed = normalise(value, row_mean, row_rstd, weight, bias, column, columns)
        tl.store(out + offset, normed.to(out.dtype.element_ty), mask=inside)
    else:
        row_mean, row_rstd = chunked_statistics(x, offset, row, column, rows, columns, epsilon, BLOCK_M, BLOCK_N)
        normalise_chunks(x, out, row_mean, row_rstd, weight, bias, offset, row, column, rows, columns, BLOCK_N)
    store_statistics(mean, rstd, row_mean, row_rstd, row, rows)


@triton.jit
def chunked_statistics(
    x, offset, row, lane, rows, columns, epsilon, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    lane_mean, lane_square = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, columns, BLOCK_N):
        inside = (row < rows) & (start + lane < columns)
        value = tl.load(x + offset + start, mask=inside, other=0.0).to(tl.float32)
        lane_mean, lane_square = add_chunk(value, inside, start // BLOCK_N + 1.0, lane_mean, lane_square)
    return row_statistics(lane_mean, lane_square, lane_counts(lane, columns, BLOCK_N), columns, epsilon)


@triton.jit
def normalise_chunks(x, out, mean, rstd, weight, bias, offset, row, lane, rows, columns, BLOCK_N: tl.constexpr):
    for start in range(0, columns, BLOCK_N):
        inside = (row < rows) & (start + lane < columns)
        value = tl.load(x + offset + start, mask=inside, other=0.0).to(tl.float32)
        normed = normalise(value, mean, rstd, weight, bias, start + lane, columns)
        tl.store(out + offset + start, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def load_gradient(grad_out, x, weight, mean, rstd, offset, inside):
    """fp32 (gradient of the output, normalised value, gradient of the normalised value)."""
    grad = tl.load(grad_out + offset, mask=inside, other=0.0).to(tl.float32)
    normalised = (tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
    normalised = tl.where(inside, normalised, 0.0)
    return grad, normalised, grad * weight


@triton.jit
def row_means(scaled, projected, columns):
    """fp32 [BLOCK_M, 1]: the means over a row of what the lanes hold."""
    return tl.sum(scaled, axis=1, keep_dims=True) / columns, tl.sum(projected, axis=1, keep_dims=True) / columns


@triton.jit
def chunked_row_means(
    grad_out, x, weight, mean, rstd, offset, row, lane, rows, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """The same of a row in chunks: the means of `scaled` and of `scaled * normalised`."""
    scaled_sum, projected_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, columns, BLOCK_N):
        inside = (row < rows) & (start + lane < columns)
        channel_weight = load_channels(weight, start + lane, columns)
        _, normalised, scaled = load_gradient(grad_out, x, channel_weight, mean, rstd, offset + start, inside)
        scaled_sum += scaled
        projected_sum += scaled * normalised
    return row_means(scaled_sum, projected_sum, columns)


@triton.jit
def input_gradient(scaled, normalised, rstd, scaled_mean, projected_mean):
    """fp32: the gradient of x."""
    return (scaled - scaled_mean - normalised * projected_mean) * rstd


@triton.jit
def store_partial(partial, weight_sum, bias_sum, column, columns, ADD: tl.constexpr):
    """Write (or add) this program's sums over its rows: partial is fp32 [2, programs, h], weight first.

    weight_sum, bias_sum: [BLOCK_M, BLOCK_N], still to be added over the rows.
    """
    weight_row = partial + tl.program_id(0).to(tl.int64) * columns + column
    bias_row = weight_row + tl.num_programs(0).to(tl.int64) * columns
    weight_sum, bias_sum = tl.sum(weight_sum, axis=0, keep_dims=True), tl.sum(bias_sum, axis=0, keep_dims=True)
    if ADD:
        weight_sum += tl.load(weight_row, mask=column < columns)
        bias_sum += tl.load(bias_row, mask=column < columns)
        tl.debug_barrier()  # another thread may be about to read what this one writes
    tl.store(weight_row, weight_sum, mask=column < columns)
    tl.store(bias_row, bias_sum, mask=column < columns)
    if ADD:
        tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "column_units"])
def _backward_kernel(
    grad_out, x, weight, mean, rstd, grad_x, partial, rows, column_units,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    columns = column_units * UNIT
    column = tl.arange(0, BLOCK_N)[None, :]
    if WHOLE:
        channel_weight = load_channels(weight, column, columns)
        weight_sum, bias_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.num_programs(0)):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        offset = row.to(tl.int64) * columns + column
        row_mean = tl.load(mean + row, mask=row < rows, other=0.0)
        row_rstd = tl.load(rstd + row, mask=row < rows, other=0.0)
        if WHOLE:
            inside = (row < rows) & (column < columns)
            grad, normalised, scaled = load_gradient(grad_out, x, channel_weight, row_mean, row_rstd, offset, inside)
            scaled_mean, projected_mean = row_means(scaled, scaled * normalised, columns)
            grad_in = input_gradient(scaled, normalised, row_rstd, scaled_mean, projected_mean)
            tl.store(grad_x + offset, grad_in.to(grad_x.dtype.element_ty), mask=inside)
            weight_sum += grad * normalised
            bias_sum += grad
        else:
            scaled_mean, projected_mean = chunked_row_means(
                grad_out, x, weight, row_mean, row_rstd, offset, row, column, rows, columns, BLOCK_M, BLOCK_N
            )
            for start in range(0, columns, BLOCK_N):
                inside = (row < rows) & (start + column < columns)
                chunk_weight = load_channels(weight, start + column, columns)
                grad, normalised, scaled = load_gradient(
                    grad_out, x, chunk_weight, row_mean, row_rstd, offset + start, inside
                )
                grad_in = input_gradient(scaled, normalised, row_rstd, scaled_mean, projected_mean)
                tl.store(grad_x + offset + start, grad_in.to(grad_x.dtype.element_ty), mask=inside)
                store_partial(partial, grad * normalised, grad, start + column, columns, ADD=True)
    if WHOLE:
        store_partial(partial, weight_sum, bias_sum, column, columns, ADD=False)


@triton.jit(do_not_specialize=["programs", "columns"])
def _sum_partials_kernel(
    partial, grad_weight, grad_bias, programs, columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    weight_sum, bias_sum = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, programs, BLOCK_M):
        row = start + tl.arange(0, BLOCK_M)[:, None]
        inside = (row < programs) & (column < columns)
        offset = row.to(tl.int64) * columns + column
        weight_sum += tl.load(partial + offset, mask=inside, other=0.0)
        bias_sum += tl.load(partial + programs.to(tl.int64) * columns + offset, mask=inside, other=0.0)
    weight_sum, bias_sum = tl.sum(weight_sum, axis=0, keep_dims=True), tl.sum(bias_sum, axis=0, keep_dims=True)
    tl.store(grad_weight + column, weight_sum.to(grad_weight.dtype.element_ty), mask=column < columns)
    tl.store(grad_bias + column, bias_sum.to(grad_bias.dtype.element_ty), mask=column < columns)


def tile_shape(columns: int, unit: int, direction: str) -> tuple[bool, int, int, int]:
    """(whether a tile holds whole rows, BLOCK_M, BLOCK_N, warps), from the width and `access_unit`.

    A fixed table: it sets the order of row sums, so it depends on nothing else. Where rows are whole, 4 warps, or more
    if one row takes them. BLOCK_N is at least 64, the mask's unit.
    """
    elements_a_warp = 32 * ELEMENTS_A_THREAD[direction][unit]
    block_n = max(triton.next_power_of_2(columns), 64)
    if block_n <= MAX_WARPS * elements_a_warp:
        block_m = max(4 * elements_a_warp // block_n, 1)
        return True, block_m, block_n, block_m * block_n // elements_a_warp
    return False, CHUNK_ROWS, CHUNK_WARPS * elements_a_warp // CHUNK_ROWS, CHUNK_WARPS


def launch_options(columns: int, element_bytes: int, direction: str) -> dict[str, int | bool]:
    """A kernel's compile-time arguments and options."""
    unit = access_unit(columns, 0, element_bytes)
    whole, block_m, block_n, warps = tile_shape(columns, unit, direction)
    return {"UNIT": unit, "WHOLE": whole, "BLOCK_M": block_m, "BLOCK_N": block_n, "num_warps": warps, **OPTIONS}


def new_partials(x: Tensor, options: dict[str, int | bool]) -> Tensor:
    """fp32 [2, programs, h] for the partial sums of the backward kernels, zeroed where programs add to it."""
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    programs = min(triton.cdiv(rows, options["BLOCK_M"]), BACKWARD_WARPS // options["num_warps"])
    make = torch.empty if options["WHOLE"] else torch.zeros
    return make(2, programs, columns, dtype=torch.float32, device=x.device)


def sum_partials(partial: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write the sums over the programs."""
    _, programs, columns = partial.shape
    _sum_partials_kernel[(triton.cdiv(columns, SUM_BLOCK_N),)](
        partial, grad_weight, grad_bias, programs, columns, BLOCK_M=SUM_BLOCK_M, BLOCK_N=SUM_BLOCK_N, num_warps=4,
        **OPTIONS,
    )  # fmt: skip


def forward(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [..., h], mean [..., 1], 1/standard deviation [..., 1]) from a contiguous x."""
    out = torch.empty_like(x)
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=torch.float32) for _ in range(2))
    options = launch_options(x.shape[-1], x.element_size(), "forward")
    if x.numel() > 0:
        with torch.cuda.device_of(x):
            _forward_kernel[(triton.cdiv(mean.numel(), options["BLOCK_M"]),)](
                x, weight.contiguous(), bias.contiguous(), out, mean, rstd,
                mean.numel(), x.shape[-1] // options["UNIT"], epsilon, **options,
            )  # fmt: skip
    return out, mean, rstd


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias), from a contiguous grad_out and x."""
    grad_x = torch.empty_like(x)
    grad_weight, grad_bias = weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    if x.numel() == 0:
        return grad_x, grad_weight.zero_(), grad_bias.zero_()
    options = launch_options(x.shape[-1], x.element_size(), "backward")
    partial = new_partials(x, options)
    with torch.cuda.device_of(x):
        _backward_kernel[(partial.shape[1],)](
            grad_out, x, weight.contiguous(), mean, rstd, grad_x, partial,
            mean.numel(), x.shape[-1] // options["UNIT"], **options,
        )  # fmt: skip
        sum_partials(partial, grad_weight, grad_bias)
    return grad_x, grad_weight, grad_bias
