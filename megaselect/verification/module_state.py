"""What runs of a model change besides its parameters: gradients, buffers, random states. Kept, and put back."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.trees import tensors_in


class Snapshot:
    """Buffers and random states (torch's, Python's, NumPy's) as they were when it was taken."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self.cpu_state = torch.get_rng_state()
        self.cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self.python_state = random.getstate()
        self.numpy_state = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None

    def put_back(self) -> None:
        """Into the same buffers, which others may hold."""
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                if name in self.buffers and not torch.equal(buffer, self.buffers[name]):
                    buffer.copy_(self.buffers[name])
        self.put_back_random_states()

    def put_back_random_states(self) -> None:
        """So that the next run draws what the first one drew."""
        torch.set_rng_state(self.cpu_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        random.setstate(self.python_state)
        if self.numpy_state is not None:
            sys.modules["numpy"].random.set_state(self.numpy_state)


@contextlib.contextmanager
def preserved(model: nn.Module, batch: Any) -> Iterator[Snapshot]:
    """Afterwards gradients of the model and of the batch, buffers and random states are as they were before."""
    leaves = [*model.parameters(), *leaves_of(batch).values()]
    gradients = [leaf.grad for leaf in leaves]
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        snapshot.put_back()


def leaves_of(batch: Any) -> dict[str, Tensor]:
    """`input 0` and so on -> the batch's tensors that ask for a gradient."""
    return {
        f"input {n}": tensor for n, tensor in enumerate(tensors_in(batch)) if tensor.requires_grad and tensor.is_leaf
    }
