"""Layer normalisation that keeps its statistics in fp32 on every device.

Shapes: x [..., h]; weight and bias [h]. Saved for backward: x, and in fp32 mean and 1/standard deviation, 8 bytes a
row. The torch fallback is torch's kernel, but for a CPU in 16 bit: there torch's saves 16-bit statistics, and its
weight gradients are then off by percents, so it gets fp32 values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.fallback import wide_dtype


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, backend: str = "auto") -> Tensor:
    """Normalised over the last dimension, in x's dtype. Raises ValueError for a backend that cannot run here."""
    return torch.ops.megaselect.layer_norm(x, weight, bias, epsilon, backend)[0]


@custom_op("layer_norm")
def _forward(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """(out [..., h], mean [..., 1], 1/standard deviation [..., 1]), statistics in fp32 (fp64 for fp64)."""
    return _kernels(backend, x).forward(x.contiguous(), weight, bias, epsilon)


@_forward.register_fake
def _(x, weight, bias, epsilon, backend):  # noqa: ANN001, ANN202
    mean, rstd = (x.new_empty((*x.shape[:-1], 1), dtype=wide_dtype(x.dtype)) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@custom_op("layer_norm_backward")
def _backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (x, weight, bias), each in its own dtype."""
    kernels = _kernels(backend, x)
    return kernels.backward(grad_out.contiguous(), x.contiguous(), weight, bias, mean, rstd)


@_backward.register_fake
def _(grad_out, x, weight, bias, mean, rstd, backend):  # noqa: ANN001, ANN202
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    x, weight, bias, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(mean, rstd)
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _autograd_backward(ctx, grad_out, *_):  # noqa: ANN001, ANN002, ANN202
    if grad_out is None:
        return (None,) * 5
    return *torch.ops.megaselect.layer_norm_backward(grad_out, *ctx.saved_tensors, ctx.backend), None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _kernels(backend: str, tensor: Tensor):  # noqa: ANN202
    if resolve_backend(backend, tensor.device, tensor.dtype) != "triton":
        return TorchFallback
    from megaselect.kernels import layer_norm_triton

    return layer_norm_triton


class TorchFallback:
    """torch's own kernels, on fp32 copies where the values are 16 bit and the device is a CPU."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
        """(out, mean, 1/standard deviation) from a contiguous x."""
        wide_x, wide_weight, wide_bias = _widened(x, weight, bias)
        out, mean, rstd = torch.native_layer_norm(wide_x, x.shape[-1:], wide_weight, wide_bias, epsilon)
        return out.to(x.dtype), mean, rstd

    @staticmethod
    def backward(
        grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of (x, weight, bias)."""
        grad_out, wide_x, wide_weight, wide_bias = _widened(grad_out, x, weight, bias)
        grads = torch.ops.aten.native_layer_norm_backward(
            grad_out, wide_x, x.shape[-1:], mean, rstd, wide_weight, wide_bias, [True, True, True]
        )
        return tuple(grad.to(like.dtype) for grad, like in zip(grads, (x, weight, bias), strict=True))


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """fp32 copies on a CPU in 16 bit; the tensors themselves elsewhere."""
    if tensors[0].device.type == "cpu" and tensors[0].element_size() == 2:
        return tuple(tensor.float() for tensor in tensors)
    return tensors
