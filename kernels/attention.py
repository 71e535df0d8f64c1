"""Causal core attention with dropout in one op, flash-style: scores and probs never reach memory (K2).

Shapes: s sequence, b micro-batch, g groups of n query heads that share one key and one value head (n = 1: multi-head
attention, a = g*n heads), d head size.

    probs   = softmax(scale * query keyᵀ, causal)      per tile, fp32 arithmetic, rounded to the compute dtype
    context = keep_scale * (probs where kept) value    [s, b, a*d], the layout that the projection reads without a copy

The masks are those of softmax_dropout.py: a function of seed, sample, head and position. Queries, keys and values come
as one tensor, as the qkv product makes them, and so does their gradient: nothing is split, stacked or copied. Kept for
backward: qkv, context and one fp32 number a row, the log-sum-exp in base 2 (4asb bytes). Backward computes scores and
probs again tile by tile. Sources: Dao et al. 2022 (the algorithm), Korthikanti et al. 2022 (what selective means).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.dropout_mask import Plane, signed_seed, unsigned_seed
from megaselect.kernels.fallback import wide_dtype


def fused_attention(qkv: Tensor, sample_index: Tensor, plane: Plane, *, scale: float, backend: str = "auto") -> Tensor:
    """Context [s, b, g*n*d] from qkv [s, b, g, n + 2, d], where a group's slots are its n queries, key and value.

    sample_index: int64 [b]. plane.site belongs to head 0; its offsets are the global position of row 0, equal for self
    attention. Raises ValueError for a backend that cannot run here, or a head size that the kernel does not take.
    """
    return torch.ops.megaselect.fused_attention(
        qkv.contiguous(), sample_index.contiguous(), scale, signed_seed(plane.seed), *plane[1:], backend
    )[0]


@custom_op("fused_attention")
def _forward(
    qkv: Tensor,
    sample_index: Tensor,
    scale: float,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(context [s, b, a*d], log_sum_exp [b, a, s])."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    return _kernels(backend, qkv).forward(*_split(qkv), sample_index, plane, scale)


@_forward.register_fake
def _(qkv, *_):  # noqa: ANN001, ANN002, ANN202
    sequence, batch, groups, slots, head_size = qkv.shape
    heads = groups * (slots - 2)
    context = qkv.new_empty(sequence, batch, heads * head_size)
    return context, qkv.new_empty(batch, heads, sequence, dtype=wide_dtype(qkv.dtype))


@custom_op("fused_attention_backward")
def _backward(
    grad_context: Tensor,
    qkv: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    sample_index: Tensor,
    scale: float,
    seed: int,
    site: int,
    threshold: int,
    row_offset: int,
    column_offset: int,
    backend: str,
) -> Tensor:
    """grad_qkv [s, b, g, n + 2, d]."""
    plane = Plane(unsigned_seed(seed), site, threshold, row_offset, column_offset)
    grad_qkv = torch.empty_like(qkv)
    _kernels(backend, qkv).backward(
        grad_context, *_split(qkv), context, log_sum_exp, sample_index, plane, scale, *_split(grad_qkv)
    )
    return grad_qkv


@_backward.register_fake
def _(grad_context, qkv, *_):  # noqa: ANN001, ANN002, ANN202
    return torch.empty_like(qkv)


def _split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(query [s, b, g, n, d], key [s, b, g, d], value [s, b, g, d]), views."""
    return qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    qkv, sample_index, *scalars = inputs
    context, log_sum_exp = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(log_sum_exp)
    threshold = scalars[3]
    # Without dropout nothing is a function of the sample: an empty tensor stands for it.
    ctx.save_for_backward(qkv, context, log_sum_exp, sample_index if threshold else sample_index.new_empty(0))
    ctx.scalars = scalars


def _autograd_backward(ctx, grad_context, _):  # noqa: ANN001, ANN202
    if grad_context is None:
        return (None,) * 9
    saved = ctx.saved_tensors  # read once: a second read fails under checkpoint
    grad_qkv = torch.ops.megaselect.fused_attention_backward(grad_context.contiguous(), *saved, *ctx.scalars)
    return (grad_qkv, *(None,) * 8)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.megaselect.fused_attention)
def _forward_flops(qkv_shape: torch.Size, *_: object, **__: object) -> int:
    """Two products, counted in full: as the unfused op is, causal or not."""
    sequence, batch, groups, slots, head_size = qkv_shape
    return 2 * (2 * batch * groups * (slots - 2) * sequence**2 * head_size)


@register_flop_formula(torch.ops.megaselect.fused_attention_backward)
def _backward_flops(_: object, qkv_shape: torch.Size, *__: object, **___: object) -> int:
    """Four products. The scores that the kernels make again are their own affair, not recomputation in the model."""
    return 2 * _forward_flops(qkv_shape)


def _kernels(backend: str, tensor: Tensor):  # noqa: ANN202
    if resolve_backend(backend, tensor.device, tensor.dtype) != "triton":
        from megaselect.kernels import attention_fallback

        return attention_fallback
    from megaselect.kernels import attention_triton

    return attention_triton
