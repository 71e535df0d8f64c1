"""The random states that operators drew from, and running one from such a state."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
from torch import Tensor

_turns = threading.Lock()  # backward has a thread for each device, and all share the CPU's state


def random_state(device: torch.device) -> Tensor:
    """The state that an operator on `device` draws from next: uint8 on the CPU."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextlib.contextmanager
def drawing_from(state: Tensor, device: torch.device) -> Iterator[None]:
    """Operators on `device` inside draw what they drew from `state`; afterwards all is as before."""
    with _turns:
        now = random_state(device)
        _set(state, device)
        try:
            yield
        finally:
            _set(now, device)


def _set(state: Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
