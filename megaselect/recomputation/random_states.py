"""Whether code drew random numbers: the states of torch's generators before and after."""

from __future__ import annotations

import torch
from torch import Tensor

from megaselect.compatibility import real_tensors


def random_states(device: torch.device) -> list[Tensor]:
    """The CPU's, and the GPU's that `device` names: uint8."""
    states = [torch.get_rng_state()]
    if device.type == "cuda" and torch.cuda.is_initialized():  # else the tensors are fake
        states.append(torch.cuda.get_rng_state(device))
    return states


def all_equal(before: list[Tensor], now: list[Tensor]) -> bool:
    """Whether nothing was drawn in between."""
    with real_tensors():
        return all(map(torch.equal, before, now))
