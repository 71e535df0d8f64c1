"""Bias, dropout and residual addition as one differentiable op that needs no saved mask.

    out = residual + keep * keep_scale * (x + bias)

Shapes: s sequence, b micro-batch, h hidden; x, residual and out are [s, b, h], bias is [h]. The arithmetic is fp32,
rounded once to x's dtype. Saved for backward: the mask (int8, s*b*h bytes) with `save_mask`, nothing without it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.dropout_mask import Plane, keep_hidden, keep_scale, signed_seed, unsigned_seed


def bias_dropout_residual(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_index: Tensor,
    plane: Plane,
    *,
    save_mask: bool,
    backend: str = "auto",
) -> Tensor:
    """[s, b, h] in x's dtype. The mask plane of a sample has token positions as rows and channels as columns.

    bias and residual may be absent. Raises ValueError for a backend that cannot run here.
    """
    return torch.ops.megaselect.bias_dropout_residual(
        x, bias, residual, sample_index.contiguous(), signed_seed(plane.seed), *plane[1:], save_mask, backend
    )[0]


@custom_op("bias_dropout_residual")
def _forward(
    x: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    sample_index: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    save_mask: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    kernels = _kernels(backend, x)
    return kernels.forward(x.contiguous(), bias, residual, sample_index, plane, save_mask and threshold > 0)


@_forward.register_fake
def _(x, bias, residual, sample_index, seed, site, threshold, row_offset, column_offset, save_mask, backend):  # noqa: ANN001, ANN202
    mask_shape = x.shape if save_mask and threshold > 0 else (0,)
    return x.new_empty(x.shape), x.new_empty(mask_shape, dtype=torch.int8)


@custom_op("bias_dropout_residual_backward")
def _backward(
    grad_out: Tensor,
    mask: Tensor,
    sample_index: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    backend: str,
) -> Tensor:
    """grad_x [s, b, h]: keep * keep_scale * grad_out."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    return _kernels(backend, grad_out).backward(grad_out.contiguous(), sample_index, plane, mask)


@_backward.register_fake
def _(grad_out, *arguments):  # noqa: ANN001, ANN002, ANN202
    return grad_out.new_empty(grad_out.shape)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    _, bias, residual, sample_index, *scalars, _, backend = inputs
    _, mask = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mask)
    threshold = scalars[2]
    ctx.save_for_backward(mask, sample_index if threshold else mask)  # without dropout nothing is a function of it
    ctx.scalars = (*scalars, backend)
    ctx.has_bias, ctx.has_residual = bias is not None, residual is not None


def _autograd_backward(ctx, grad_out, _):  # noqa: ANN001, ANN202
    if grad_out is None:
        return (None,) * 11
    mask, sample_index = ctx.saved_tensors  # read once: a second read fails under checkpoint
    grad_x = grad_out
    if ctx.scalars[2] > 0:  # the drop threshold
        grad_x = torch.ops.megaselect.bias_dropout_residual_backward(grad_out, mask, sample_index, *ctx.scalars)
    grad_bias = grad_x.sum((0, 1)) if ctx.has_bias and ctx.needs_input_grad[1] else None
    return (grad_x, grad_bias, grad_out if ctx.has_residual else None, *(None,) * 8)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _kernels(backend: str, tensor: Tensor):  # noqa: ANN202
    if resolve_backend(backend, tensor.device, tensor.dtype) != "triton":
        return TorchFallback
    from megaselect.kernels import bias_dropout_residual_triton

    return bias_dropout_residual_triton


class TorchFallback:
    """The kernel's maths in plain torch: for the CPU, and as a reference."""

    @staticmethod
    def forward(
        x: Tensor, bias: Tensor | None, residual: Tensor | None, sample_index: Tensor, plane: Plane, save_mask: bool
    ) -> tuple[Tensor, Tensor]:
        """(out, mask or empty)."""
        wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        biased = wide if bias is None else wide + bias
        keep = _keep(x, sample_index, plane) if plane.threshold else x.new_empty(0, dtype=torch.int8)
        if plane.threshold:
            scale = keep.to(biased.dtype).mul_(-keep_scale(plane.threshold))  # keep is -1 where kept
            scaled = scale.mul_(biased)
            out = scaled if residual is None else scaled.add_(residual)
        else:
            out = biased.clone() if residual is None else biased + residual
        return out.to(x.dtype), keep if save_mask else x.new_empty(0, dtype=torch.int8)

    @staticmethod
    def backward(grad_out: Tensor, sample_index: Tensor, plane: Plane, mask: Tensor) -> Tensor:
        """grad_x from the saved mask, or from one that is recomputed where `mask` is empty."""
        keep = mask if mask.numel() else _keep(grad_out, sample_index, plane)
        return torch.mul(grad_out, keep).mul_(-keep_scale(plane.threshold))


def _keep(like: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
    rows, _, columns = like.shape
    return keep_hidden(sample_index.cpu(), plane, rows, columns).to(like.device)
