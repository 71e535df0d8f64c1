"""Layer normalisation that keeps its statistics in fp32 on every device.

torch's own on a CPU in 16 bit saves 16-bit statistics, and its weight gradients are then off by percents. This op hands
torch's kernel fp32 values there, and the values as they are elsewhere. Shapes: x [..., h]; weight and bias [h].
Kept for backward: x, and mean and 1/standard deviation in fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalised over the last dimension, in x's dtype."""
    return torch.ops.megaselect.layer_norm(x, weight, bias, epsilon)[0]


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """fp32 copies on a CPU in 16 bit; the tensors themselves elsewhere."""
    if tensors[0].device.type == "cpu" and tensors[0].element_size() == 2:
        return tuple(tensor.float() for tensor in tensors)
    return tensors


@torch.library.custom_op("megaselect::layer_norm", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [..., h], mean [..., 1], 1/standard deviation [..., 1]), statistics in fp32 (fp64 for fp64)."""
    wide_x, wide_weight, wide_bias = _widened(x, weight, bias)
    out, mean, rstd = torch.native_layer_norm(wide_x, x.shape[-1:], wide_weight, wide_bias, epsilon)
    return out.to(x.dtype), mean, rstd


@_forward.register_fake
def _(x, weight, bias, epsilon):  # noqa: ANN001, ANN202
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=dtype) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@torch.library.custom_op("megaselect::layer_norm_backward", mutates_args=())
def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias), each in its own dtype."""
    grad_out, wide_x, wide_weight, wide_bias = _widened(grad_out, x, weight, bias)
    grads = torch.ops.aten.native_layer_norm_backward(
        grad_out, wide_x, x.shape[-1:], mean, rstd, wide_weight, wide_bias, [True, True, True]
    )
    return tuple(grad.to(like.dtype) for grad, like in zip(grads, (x, weight, bias), strict=True))


@_backward.register_fake
def _(grad_out, x, weight, bias, mean, rstd):  # noqa: ANN001, ANN202
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    x, weight, bias, _ = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _autograd_backward(ctx, grad_out, *_):  # noqa: ANN001, ANN002, ANN202
    if grad_out is None:
        return None, None, None, None
    return *torch.ops.megaselect.layer_norm_backward(grad_out.contiguous(), *ctx.saved_tensors), None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)
