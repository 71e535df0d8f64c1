"""Bias, dropout, residual addition and the layer normalisation that follows, as one differentiable op.

    out    = residual + keep * keep_scale * (x + bias), rounded to x's dtype
    normed = layer normalisation of out as rounded

Shapes: s sequence, b micro-batch, h hidden; x, residual, out and normed are [s, b, h]; bias, weight, ln_bias are [h].
Both outputs and all gradients have the bits of bias_dropout_residual followed by layer_norm on the same backend, so a
layer may run one or the other, and may have normed made again from out by layer_norm alone. Saved for backward: out,
mean and 1/standard deviation in fp32 (8 bytes a row), and with `save_mask` the mask (int8, s*b*h bytes).
"""

from __future__ import annotations

import torch
from torch import Tensor

from megaselect.kernels import bias_dropout_residual, layer_norm
from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.dropout_mask import Plane, signed_seed, unsigned_seed
from megaselect.kernels.fallback import wide_dtype


def bias_dropout_residual_layer_norm(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    ln_bias: Tensor,
    sample_index: Tensor,
    plane: Plane,
    *,
    epsilon: float,
    save_mask: bool,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(out, normed), [s, b, h] in x's dtype. A sample's mask plane has token positions as rows, channels as columns.

    sample_index: int64 [b]. Raises ValueError for a backend that cannot run here.
    """
    scalars = (signed_seed(plane.seed), *plane[1:])
    return torch.ops.megaselect.bias_dropout_residual_layer_norm(
        x, bias, residual, weight, ln_bias, sample_index.contiguous(), *scalars, epsilon, save_mask, backend
    )[:2]


@custom_op("bias_dropout_residual_layer_norm")
def _forward(
    x: Tensor,
    bias: Tensor,
    residual: Tensor,
    weight: Tensor,
    ln_bias: Tensor,
    sample_index: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    epsilon: float,
    save_mask: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(out, normed, mean [s, b, 1], 1/standard deviation [s, b, 1], mask or empty)."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    tensors = (x.contiguous(), bias, residual, weight, ln_bias, sample_index)
    return _kernels(backend, x, plane).forward(*tensors, plane, epsilon, save_mask and threshold > 0)


@_forward.register_fake
def _(x, bias, residual, weight, ln_bias, sample_index, seed, site, threshold, row, column, epsilon, store, backend):  # noqa: ANN001, ANN202
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=wide_dtype(x.dtype)) for _ in range(2))
    mask = x.new_empty(x.shape if store and threshold > 0 else (0,), dtype=torch.int8)
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd, mask


@custom_op("bias_dropout_residual_layer_norm_backward")
def _backward(
    grad_out: Tensor | None,
    grad_normed: Tensor,
    out: Tensor,
    mean: Tensor,
    rstd: Tensor,
    mask: Tensor,
    sample_index: Tensor,
    weight: Tensor,
    ln_bias: Tensor,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (x, residual, weight, ln_bias); that of x is empty without dropout: it is that of residual."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    grad_out = None if grad_out is None else grad_out.contiguous()
    kept = (out, mean, rstd, mask, sample_index, weight, ln_bias)
    return _kernels(backend, out, plane).backward(grad_out, grad_normed.contiguous(), *kept, plane)


@_backward.register_fake
def _(grad_out, grad_normed, out, mean, rstd, mask, sample_index, weight, ln_bias, seed, site, threshold, *_):  # noqa: ANN001, ANN002, ANN202
    grad_x = out.new_empty(out.shape if threshold > 0 else (0,))
    return grad_x, out.new_empty(out.shape), weight.new_empty(weight.shape), ln_bias.new_empty(ln_bias.shape)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    *_, weight, ln_bias, sample_index, seed, site, threshold, row_offset, column_offset, _, _, backend = inputs
    out, _, mean, rstd, mask = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd, mask)
    samples = sample_index if threshold else mask  # without dropout nothing is a function of it
    ctx.save_for_backward(out, mean, rstd, mask, samples, weight, ln_bias)
    ctx.scalars = (seed, site, threshold, row_offset, column_offset, backend)


def _autograd_backward(ctx, grad_out, grad_normed, *_):  # noqa: ANN001, ANN002, ANN202
    if grad_out is None and grad_normed is None:
        return (None,) * 14
    saved = ctx.saved_tensors  # read once: a second read fails under checkpoint
    threshold = ctx.scalars[2]
    grad_weight = grad_ln_bias = None
    if grad_normed is None:
        grad_residual = grad_x = grad_out
        if threshold:
            _, _, _, mask, samples, _, _ = saved
            grad_x = torch.ops.megaselect.bias_dropout_residual_backward(grad_out, mask, samples, *ctx.scalars)
    else:
        grad_x, grad_residual, grad_weight, grad_ln_bias = (
            torch.ops.megaselect.bias_dropout_residual_layer_norm_backward(grad_out, grad_normed, *saved, *ctx.scalars)
        )
        grad_x = grad_x if threshold else grad_residual
    grad_bias = grad_x.sum((0, 1)) if ctx.needs_input_grad[1] else None
    return (grad_x, grad_bias, grad_residual, grad_weight, grad_ln_bias, *(None,) * 9)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _kernels(backend: str, tensor: Tensor, plane: Plane):  # noqa: ANN202
    if resolve_backend(backend, tensor.device, tensor.dtype) != "triton":
        return Pair(bias_dropout_residual.TorchFallback, layer_norm.TorchFallback)
    from megaselect.kernels import bias_dropout_residual_layer_norm_triton as fused

    return fused.kernels_for(plane)


class Pair:
    """The op as the two that it equals, from the kernels of each: in plain torch, for the CPU, and as a reference."""

    def __init__(self, dropout, normalisation) -> None:  # noqa: ANN001
        self.dropout, self.normalisation = dropout, normalisation

    def forward(
        self,
        x: Tensor,
        bias: Tensor,
        residual: Tensor,
        weight: Tensor,
        ln_bias: Tensor,
        sample_index: Tensor,
        plane: Plane,
        epsilon: float,
        save_mask: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(out, normed, mean, 1/standard deviation, mask or empty)."""
        out, mask = self.dropout.forward(x, bias, residual, sample_index, plane, save_mask)
        normed, mean, rstd = self.normalisation.forward(out, weight, ln_bias, epsilon)
        return out, normed, mean, rstd, mask

    def backward(
        self,
        grad_out: Tensor | None,
        grad_normed: Tensor,
        out: Tensor,
        mean: Tensor,
        rstd: Tensor,
        mask: Tensor,
        sample_index: Tensor,
        weight: Tensor,
        ln_bias: Tensor,
        plane: Plane,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of (x, residual, weight, ln_bias); that of x empty without dropout."""
        total, *grads = self.normalisation.backward(grad_normed, out, weight, ln_bias, mean, rstd)
        if grad_out is not None:
            total += grad_out  # of two rounded gradients, rounded, as autograd adds them
        grad_x = self.dropout.backward(total, sample_index, plane, mask) if plane.threshold else out.new_empty(0)
        return grad_x, total, *grads
