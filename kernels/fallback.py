"""What the plain-torch fallbacks of the kernels share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
INTEGER_OF_WIDTH = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What arithmetic on the dtype is done in: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def and_keep(tensor: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """The tensor where `keep` (int8) is -1, else 0, by a bitwise and: exact, four times as fast as a select."""
    integer = INTEGER_OF_WIDTH[tensor.element_size()]
    return torch.bitwise_and(tensor.view(integer), keep, out=out.view(integer)).view(tensor.dtype)
