"""Softmax and dropout compiled by Numba, for fp32 and bf16 on a CPU: the kernels' maths, saved tensors and rounding.

Shapes: b micro-batch, a heads, q query and k key positions. The masks are the fallback's bits. The probs are not: exp2
and the row sums are numba_functions.py's own, and do not depend on the vectors that a CPU has, as torch's do.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megaselect.kernels import numba_functions as functions
from megaselect.kernels.cpu_threads import in_parts
from megaselect.kernels.dropout_mask import Plane, keep_hidden, key_halves


def forward(
    scores: Tensor, sample_index: Tensor, plane: Plane, save_probs: bool, save_mask: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(dropped, row_max, inverse_sum, probs, mask) as the Triton kernel returns them."""
    dropped = torch.empty_like(scores)
    row_max, inverse_sum = (scores.new_empty(scores.shape[:-1], dtype=torch.float32) for _ in "ml")
    probs = torch.empty_like(scores) if save_probs else scores.new_empty(0)
    mask = scores.new_empty(scores.shape if save_mask else 0, dtype=torch.int8)
    inputs = (_planes(scores), *_numbers(sample_index, scores.shape[1], plane))
    outputs = (_planes(dropped), _rows(row_max), _rows(inverse_sum), _planes(probs), _planes(mask))
    in_parts(
        scores.shape[0] * scores.shape[1],
        scores.numel(),
        lambda *part: functions.softmax_dropout(*inputs, *outputs, *part),
    )
    return dropped, row_max, inverse_sum, probs, mask


def backward(
    grad_dropped: Tensor,
    delta: Tensor,
    sample_index: Tensor,
    plane: Plane,
    *,
    scores: Tensor,
    row_max: Tensor,
    inverse_sum: Tensor,
    probs: Tensor,
    mask: Tensor,
    write_dropped: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_scores, dropped or what it equals). grad_dropped is overwritten with grad_scores."""
    write_dropped &= plane.threshold > 0 or not probs.numel()
    dropped = torch.empty_like(grad_dropped) if write_dropped else grad_dropped.new_empty(0)
    gradients = (_planes(grad_dropped), _rows(delta), *_numbers(sample_index, grad_dropped.shape[1], plane))
    statistics = (_planes(scores), _rows(row_max), _rows(inverse_sum))
    kept = (_planes(probs), _planes(mask), _planes(dropped))
    in_parts(
        grad_dropped.shape[0] * grad_dropped.shape[1],
        grad_dropped.numel(),
        lambda *part: functions.softmax_dropout_backward(*gradients, *statistics, *kept, *part),
    )
    return grad_dropped, dropped if write_dropped else probs


def load(dtype: torch.dtype) -> None:
    """Have Numba compile what a step needs, about ten seconds, or load what it has compiled before, half a one."""
    samples, plane, scores = torch.zeros(1, dtype=torch.int64), Plane(0, 0, 26), torch.zeros(1, 1, 1, 1, dtype=dtype)
    keep_hidden(samples, plane, 1, 1)
    _, row_max, inverse_sum, probs, mask = forward(scores, samples, plane, True, True)
    saved = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": probs, "mask": mask}
    backward(scores, row_max, samples, plane, **saved, write_dropped=True)


def _planes(tensor: Tensor) -> np.ndarray:
    """[b*a, q, k], bf16 as its bits; no element where nothing is kept."""
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return (bits.flatten(0, 1) if tensor.dim() == 4 else bits.view(0, 0, 0)).numpy()


def _rows(tensor: Tensor) -> np.ndarray:
    """[b*a, q] in fp32; no element where nothing is kept."""
    return (tensor.flatten(0, 1) if tensor.dim() == 3 else tensor.new_empty(0, 0, dtype=torch.float32)).numpy()


def _numbers(sample_index: Tensor, heads: int, plane: Plane) -> tuple[object, ...]:
    samples = sample_index.numpy() if plane.threshold else np.empty(0, np.int64)
    return samples, heads, plane.site, *key_halves(plane.seed), *plane[2:]
