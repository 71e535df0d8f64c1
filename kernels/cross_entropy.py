"""Cross-entropy over a padded vocabulary that keeps only the logits and one number a token.

Shapes: n tokens, V padded vocabulary, v real vocabulary. torch's own keeps fp32 log-probabilities (4nV bytes) whatever
the logits' dtype; here the logits stay as they are and backward rebuilds the rest, chunk by chunk in fp32. Columns from
v on are padding: they take no part in the sum and get zero gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS_PER_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 25}  # a CPU core's cache; on a GPU 128 MiB of fp32 at a time
LOG2_E = math.log2(math.e)


def cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean over tokens, an fp32 scalar (fp64 for fp64), from logits [n, V] and int64 targets [n] in [0, vocab_size)."""
    return torch.ops.megaselect.cross_entropy(logits, targets, vocab_size)[0]


@torch.library.custom_op("megaselect::cross_entropy", mutates_args=())
def _forward(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(loss, log-sum-exp [n])."""
    log_sum_exp = logits.new_empty(logits.shape[0], dtype=_wide(logits.dtype))
    for chunk in _chunks(logits):
        live = logits[chunk, :vocab_size].to(log_sum_exp.dtype)
        highest = live.amax(-1, keepdim=True)
        sums = torch.sub(live, highest).mul_(LOG2_E).exp2_().sum(-1)
        log_sum_exp[chunk] = sums.log_().add_(highest.squeeze(-1))
    picked = logits.gather(1, targets.unsqueeze(1)).squeeze(1)
    return (log_sum_exp - picked).mean(), log_sum_exp


@_forward.register_fake
def _(logits, targets, vocab_size):  # noqa: ANN001, ANN202
    dtype = _wide(logits.dtype)
    return logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


@torch.library.custom_op("megaselect::cross_entropy_backward", mutates_args=())
def _backward(grad_loss: Tensor, logits: Tensor, targets: Tensor, log_sum_exp: Tensor, vocab_size: int) -> Tensor:
    """grad_logits [n, V]: (softmax - one-hot) * grad_loss / n."""
    grad_logits = torch.empty_like(logits)
    grad_logits[:, vocab_size:] = 0
    scale = grad_loss / logits.shape[0]
    for chunk in _chunks(logits):
        shifted = torch.sub(logits[chunk, :vocab_size], log_sum_exp[chunk].unsqueeze(-1))  # fp32: log_sum_exp is
        probs = shifted.mul_(LOG2_E).exp2_()
        rows = torch.arange(probs.shape[0], device=probs.device)
        probs[rows, targets[chunk]] -= 1  # one element a row: no two writes meet
        grad_logits[chunk, :vocab_size] = probs.mul_(scale)
    return grad_logits


@_backward.register_fake
def _(grad_loss, logits, targets, log_sum_exp, vocab_size):  # noqa: ANN001, ANN202
    return torch.empty_like(logits)


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    logits, targets, ctx.vocab_size = inputs
    _, log_sum_exp = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(log_sum_exp)
    ctx.save_for_backward(logits, targets, log_sum_exp)


def _autograd_backward(ctx, grad_loss, _):  # noqa: ANN001, ANN202
    if grad_loss is None:
        return None, None, None
    return torch.ops.megaselect.cross_entropy_backward(grad_loss, *ctx.saved_tensors, ctx.vocab_size), None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(ELEMENTS_PER_CHUNK.get(logits.device.type, 1 << 25) // logits.shape[1], 1)
    for start in range(0, logits.shape[0], step):
        yield slice(start, min(start + step, logits.shape[0]))
