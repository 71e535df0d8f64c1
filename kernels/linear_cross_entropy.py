"""The output product and cross-entropy in one op that holds the logits of some tokens at a time.

Shapes: n tokens, h hidden, V padded vocabulary, v real vocabulary, c tokens a chunk. Saved for backward: hidden,
targets and one fp32 number a token; no logits. Backward computes each chunk's logits again, which costs one more
product (2nhV FLOPs). The arithmetic is that of the product followed by cross_entropy.py, with logits rounded to the
compute dtype; the weight's gradient is summed over chunks in fp32. So chunks change the order of sums and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils.flop_counter import register_flop_formula

from megaselect.kernels.cross_entropy import overwrite_with_gradient, picked_logits, row_log_sum_exp
from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.fallback import wide_dtype


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_tokens: int
) -> Tensor:  # fmt: skip
    """Mean over tokens of the cross-entropy of hidden weightᵀ, an fp32 scalar (fp64 for fp64).

    hidden [n, h]; weight [V, h]; targets int64 [n] in [0, vocab_size); chunk_tokens: how many tokens' logits exist at a
    time, at least 1.
    """
    return torch.ops.megaselect.linear_cross_entropy(hidden.contiguous(), weight, targets, vocab_size, chunk_tokens)[0]


@custom_op("linear_cross_entropy")
def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, chunk_tokens: int
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, log-sum-exp [n])."""
    log_sum_exp = hidden.new_empty(hidden.shape[0], dtype=wide_dtype(hidden.dtype))
    losses = torch.empty_like(log_sum_exp)
    for chunk in _chunks(hidden, chunk_tokens):
        logits = linear(hidden[chunk], weight)
        log_sum_exp[chunk] = row_log_sum_exp(logits, vocab_size)
        torch.sub(log_sum_exp[chunk], picked_logits(logits, targets[chunk]), out=losses[chunk])
    return losses.mean(), log_sum_exp


@_forward.register_fake
def _(hidden, weight, targets, vocab_size, chunk_tokens):  # noqa: ANN001, ANN202
    dtype = wide_dtype(hidden.dtype)
    return hidden.new_empty((), dtype=dtype), hidden.new_empty(hidden.shape[0], dtype=dtype)


@custom_op("linear_cross_entropy_backward")
def _backward(
    grad_loss: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sum_exp: Tensor,
    vocab_size: int,
    chunk_tokens: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and weight, in their dtypes."""
    grad_hidden = torch.empty_like(hidden)
    grad_weight = torch.zeros_like(weight, dtype=log_sum_exp.dtype)
    scale = grad_loss / hidden.shape[0]
    for chunk in _chunks(hidden, chunk_tokens):
        logits = linear(hidden[chunk], weight)
        overwrite_with_gradient(logits, targets[chunk], log_sum_exp[chunk], vocab_size, scale)
        torch.mm(logits, weight, out=grad_hidden[chunk])
        _add_product(grad_weight, logits.t(), hidden[chunk])
    return grad_hidden, grad_weight.to(weight.dtype)


@_backward.register_fake
def _(grad_loss, hidden, weight, *_):  # noqa: ANN001, ANN002, ANN202
    return torch.empty_like(hidden), torch.empty_like(weight)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    hidden, weight, targets, ctx.vocab_size, ctx.chunk_tokens = inputs
    _, log_sum_exp = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(log_sum_exp)
    ctx.save_for_backward(hidden, weight, targets, log_sum_exp)


def _autograd_backward(ctx, grad_loss, _):  # noqa: ANN001, ANN202
    if grad_loss is None:
        return (None,) * 5
    saved = ctx.saved_tensors  # read once: a second read fails under checkpoint
    grads = torch.ops.megaselect.linear_cross_entropy_backward(grad_loss, *saved, ctx.vocab_size, ctx.chunk_tokens)
    return (*grads, None, None, None)


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.megaselect.linear_cross_entropy)
def _forward_flops(hidden_shape: torch.Size, weight_shape: torch.Size, *_: object, **__: object) -> int:
    return 2 * hidden_shape[0] * hidden_shape[1] * weight_shape[0]


@register_flop_formula(torch.ops.megaselect.linear_cross_entropy_backward)
def _backward_flops(_: object, hidden_shape: torch.Size, weight_shape: torch.Size, *__: object, **___: object) -> int:
    """The logits again, and two gradients."""
    return 3 * _forward_flops(hidden_shape, weight_shape)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left right, without a rounding of the product where total is of its dtype."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


def _chunks(hidden: Tensor, chunk_tokens: int) -> Iterator[slice]:
    for start in range(0, hidden.shape[0], chunk_tokens):
        yield slice(start, min(start + chunk_tokens, hidden.shape[0]))
