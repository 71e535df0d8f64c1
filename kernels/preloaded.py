"""Loads what Numba has compiled for fp32, half a second of a process, once for all that are copied from this one."""

from __future__ import annotations

import torch

from megaselect.kernels.backend import has_numba
from megaselect.kernels.dropout_mask import Plane, keep_hidden


def _load() -> None:
    from megaselect.kernels import softmax_dropout_numba

    samples, plane, scores = torch.zeros(1, dtype=torch.int64), Plane(0, 0, 26), torch.zeros(1, 1, 1, 1)
    keep_hidden(samples, plane, 1, 1)
    _, row_max, inverse_sum, probs, mask = softmax_dropout_numba.forward(scores, samples, plane, True, True)
    saved = {"scores": scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": probs, "mask": mask}
    softmax_dropout_numba.backward(scores, row_max, samples, plane, **saved, write_dropped=True)


if has_numba():
    _load()
