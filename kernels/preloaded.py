"""Loads what Numba has compiled for fp32, half a second of a process, once for all that are copied from this one."""

from __future__ import annotations

import torch

from megaselect.kernels.backend import has_numba

if has_numba():
    from megaselect.kernels import softmax_dropout_numba

    softmax_dropout_numba.load(torch.float32)
