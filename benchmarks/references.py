"""Exact answers in fp64 for one head, with the masks of the CPU's own mask function: what kernels are judged by.

Shapes: s sequence, d head size. Rows are worked through in chunks, so that s = 16k fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megaselect.kernels.dropout_mask import Plane, keep_planes, keep_scale

ROWS_PER_CHUNK = 2048


class AttentionReference(NamedTuple):
    """fp64 [s, d] each."""

    context: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_value: Tensor


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """|actual - exact| / |exact|, NaN where anything is."""
    return ((actual.double() - exact).norm() / exact.norm()).item()


def kept(plane: Plane, head: int, sample: int, first: int, rows: int, columns: int) -> Tensor:
    """bool [rows, columns] of rows from `first` on: live and not dropped."""
    part = plane._replace(site=plane.site + head, row_offset=plane.row_offset + first)
    return keep_planes(torch.tensor([sample]), part, 1, rows, columns, causal=True)[0, 0] != 0


def attention(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, scale: float, plane: Plane, head: int, sample: int
) -> AttentionReference:
    """Causal attention with dropout of one head, all tensors [s, d], and its gradients from grad [s, d]."""
    query, key, value, grad = (tensor.detach().double() for tensor in (query, key, value, grad))
    context, grad_query = torch.zeros_like(query), torch.zeros_like(query)
    grad_key, grad_value = torch.zeros_like(key), torch.zeros_like(value)
    for first, last in _chunks(query.shape[0]):
        probs = _causal_softmax(query[first:last] @ key[:last].T * scale, first)
        factor = _factor(plane, head, sample, first, probs)
        context[first:last] = (probs * factor) @ value[:last]
        grad_rows = grad[first:last]
        grad_probs = grad_rows @ value[:last].T * factor
        grad_scores = probs * (grad_probs - (probs * grad_probs).sum(-1, keepdim=True))
        grad_query[first:last] = grad_scores @ key[:last] * scale
        grad_key[:last] += grad_scores.T @ query[first:last] * scale
        grad_value[:last] += (probs * factor).T @ grad_rows
    return AttentionReference(context, grad_query, grad_key, grad_value)


def softmax_dropout_errors(
    scores: Tensor, dropped: Tensor, grad: Tensor, delta: Tensor, grad_scores: Tensor, plane: Plane, head: int
) -> tuple[float, float]:
    """Relative errors of dropped probs and of grad_scores, [s, s] each, for sample 0.

    grad: of the dropped probs, keep scale included; delta [s]: the row's dot product of grad and dropped probs.
    """
    squares = torch.zeros(4, dtype=torch.float64, device=scores.device)  # (error, exact) of forward and of backward
    for first, last in _chunks(scores.shape[0]):
        rows = slice(first, last)
        probs = _causal_softmax(scores[rows].double(), first)
        keep = kept(plane, head, 0, first, last - first, scores.shape[1]).to(scores.device)
        exact = probs * keep
        exact_grad = probs * (grad[rows].double() * keep - delta[rows, None].double())
        parts = (dropped[rows].double() - exact, exact, grad_scores[rows].double() - exact_grad, exact_grad)
        squares += torch.stack([part.square().sum() for part in parts])
    error, exact, grad_error, exact_grad = squares.sqrt().tolist()
    return error / exact, grad_error / exact_grad


def _factor(plane: Plane, head: int, sample: int, first: int, probs: Tensor) -> Tensor:
    keep = kept(plane, head, sample, first, *probs.shape).to(probs.device)
    return keep.double() * keep_scale(plane.threshold)


def _causal_softmax(scores: Tensor, first: int) -> Tensor:
    """Rows of the softmax from row `first` on."""
    dead = torch.ones(scores.shape, dtype=torch.bool, device=scores.device).triu_(first + 1)
    return scores.masked_fill(dead, -torch.inf).softmax(-1)


def _chunks(rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, rows, ROWS_PER_CHUNK):
        yield first, min(first + ROWS_PER_CHUNK, rows)
