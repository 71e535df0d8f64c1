"""Cross-entropy over a padded vocabulary that holds the logits once, and one number a token.

Shapes: n tokens, V padded vocabulary, v real vocabulary. torch's own keeps fp32 log-probabilities (4nV bytes) whatever
the logits' dtype, and makes a gradient beside them. Here the logits stay as they are, and backward writes the gradient
over them, chunk by chunk in fp32. Columns from v on are padding: they take no part in the sum and get zero gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from megaselect.kernels.custom_op import custom_op
from megaselect.kernels.fallback import LOG2_E, wide_dtype

ELEMENTS_PER_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 25}  # a CPU core's cache; on a GPU 128 MiB of fp32 at a time


def cross_entropy(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean over tokens, an fp32 scalar (fp64 for fp64), from logits [n, V] and int64 targets [n] in [0, vocab_size).

    Backward overwrites the logits: nobody may read them afterwards. A second backward through the same graph raises
    torch's RuntimeError about a tensor modified in place.
    """
    return torch.ops.megaselect.cross_entropy(logits.contiguous(), targets, vocab_size)[0]


def token_losses(logits: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """[n]: what cross_entropy takes the mean of. Without a graph."""
    return row_log_sum_exp(logits, vocab_size) - picked_logits(logits, targets)


@custom_op("cross_entropy")
def _forward(logits: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """(loss, log-sum-exp [n])."""
    log_sum_exp = row_log_sum_exp(logits, vocab_size)
    return (log_sum_exp - picked_logits(logits, targets)).mean(), log_sum_exp


@_forward.register_fake
def _(logits, targets, vocab_size):  # noqa: ANN001, ANN202
    dtype = wide_dtype(logits.dtype)
    return logits.new_empty((), dtype=dtype), logits.new_empty(logits.shape[0], dtype=dtype)


@custom_op("cross_entropy_backward", mutates_args=("logits",))
def _backward(grad_loss: Tensor, logits: Tensor, targets: Tensor, log_sum_exp: Tensor, vocab_size: int) -> None:
    """Writes (softmax - one-hot) * grad_loss / n over the logits."""
    overwrite_with_gradient(logits, targets, log_sum_exp, vocab_size, grad_loss / logits.shape[0])


@_backward.register_fake
def _(grad_loss, logits, targets, log_sum_exp, vocab_size):  # noqa: ANN001, ANN202
    return None


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    logits, targets, ctx.vocab_size = inputs
    _, log_sum_exp = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(log_sum_exp)
    ctx.save_for_backward(logits, targets, log_sum_exp)


def _autograd_backward(ctx, grad_loss, _):  # noqa: ANN001, ANN202
    if grad_loss is None:
        return None, None, None
    logits, targets, log_sum_exp = ctx.saved_tensors  # read once: a second read fails under checkpoint
    torch.ops.megaselect.cross_entropy_backward(grad_loss, logits, targets, log_sum_exp, ctx.vocab_size)
    return logits, None, None


_forward.register_autograd(_autograd_backward, setup_context=_setup_context)


def row_log_sum_exp(logits: Tensor, vocab_size: int) -> Tensor:
    """[n] in fp32 (fp64 for fp64), over the first vocab_size columns of logits [n, V]."""
    log_sum_exp = logits.new_empty(logits.shape[0], dtype=wide_dtype(logits.dtype))
    for chunk in _chunks(logits):
        live = logits[chunk, :vocab_size].to(log_sum_exp.dtype)
        highest = live.amax(-1, keepdim=True)
        sums = torch.sub(live, highest).mul_(LOG2_E).exp2_().sum(-1)
        log_sum_exp[chunk] = sums.log_().add_(highest.squeeze(-1))
    return log_sum_exp


def picked_logits(logits: Tensor, targets: Tensor) -> Tensor:
    """[n]: each token's logit of its target."""
    return logits.gather(1, targets.unsqueeze(1)).squeeze(1)


def overwrite_with_gradient(
    logits: Tensor, targets: Tensor, log_sum_exp: Tensor, vocab_size: int, scale: Tensor
) -> None:  # fmt: skip
    """logits [n, V] become (softmax - one-hot) * scale, padding 0."""
    logits[:, vocab_size:] = 0
    for chunk in _chunks(logits):
        shifted = torch.sub(logits[chunk, :vocab_size], log_sum_exp[chunk].unsqueeze(-1))  # fp32: log_sum_exp is
        probs = shifted.mul_(LOG2_E).exp2_()
        rows = torch.arange(probs.shape[0], device=probs.device)
        probs[rows, targets[chunk]] -= 1  # one element a row: no two writes meet
        logits[chunk, :vocab_size] = probs.mul_(scale)


def _chunks(logits: Tensor) -> Iterator[slice]:
    step = max(ELEMENTS_PER_CHUNK.get(logits.device.type, 1 << 25) // logits.shape[1], 1)
    for start in range(0, logits.shape[0], step):
        yield slice(start, min(start + step, logits.shape[0]))
