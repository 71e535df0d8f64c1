"""GELU in its tanh approximation (Hendrycks and Gimpel 2016) as an op of its own, with torch's arithmetic.

An op of its own because a compiler cannot see into it, so that a policy that recomputes ops by name can name it.
Shapes: any. Saved for backward: the input.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from megaselect.kernels.custom_op import custom_op

APPROXIMATION = "tanh"


def gelu(x: Tensor) -> Tensor:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x³))), in x's shape and dtype."""
    return torch.ops.megaselect.gelu(x)


@custom_op("gelu")
def _forward(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=APPROXIMATION)


@_forward.register_fake
def _(x):  # noqa: ANN001, ANN202
    return torch.empty_like(x)


@custom_op("gelu_backward")
def _backward(grad_out: Tensor, x: Tensor) -> Tensor:
    """grad_x, in x's shape and dtype."""
    return torch.ops.aten.gelu_backward(grad_out, x, approximate=APPROXIMATION)


@_backward.register_fake
def _(grad_out, x):  # noqa: ANN001, ANN202
    return torch.ops.aten.gelu_backward(grad_out, x, approximate=APPROXIMATION)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _autograd_backward(ctx, grad_out):  # noqa: ANN001, ANN202
    if grad_out is None:
        return None
    (x,) = ctx.saved_tensors
    return torch.ops.megaselect.gelu_backward(grad_out, x)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)
