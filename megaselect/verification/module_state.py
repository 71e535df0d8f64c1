"""What runs of a model change: parameters, gradients, buffers, attributes, random states. Kept, and put back."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.trees import tensors_in
from megaselect.verification.attributes import Attributes


class Snapshot:
    """Parameters, buffers, attributes of modules and random states as they were when it was taken.

    Random states are those of torch, Python and NumPy, of their generator objects that the model holds (in attributes,
    closures and the globals of its code), and of each torch.Generator that a run has met (`meet`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tensors = {name: tensor.detach().clone() for name, tensor in _tensors_of(model)}
        self.attributes = Attributes(model)
        self.cpu_state = torch.get_rng_state()
        self.cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._put_back = [_global_states(), *_generators(model)]
        self._met: dict[int, tuple[torch.Generator, Tensor]] = {}

    def meet(self, generator: torch.Generator) -> None:
        """A run is about to draw from it; the first time, its state is kept."""
        self._met.setdefault(id(generator), (generator, generator.get_state()))

    def put_back(self) -> None:
        """Into the same tensors, which others may hold."""
        with torch.no_grad():
            for name, tensor in _tensors_of(self.model):
                kept = self.tensors.get(name)
                if kept is not None and (kept.dtype != tensor.dtype or not torch.equal(tensor, kept)):
                    tensor.data.copy_(kept)
        self.attributes.put_back()
        self.put_back_random_states()

    def put_back_random_states(self) -> None:
        """So that the next run draws what the first one drew."""
        torch.set_rng_state(self.cpu_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        for put_back in self._put_back:
            put_back()
        for generator, state in self._met.values():
            generator.set_state(state)


def _tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _global_states() -> Callable[[], None]:
    """What puts back the states that Python and NumPy have of their own."""
    state, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None

    def put_back() -> None:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)

    return put_back


def _generators(model: nn.Module) -> Iterator[Callable[[], None]]:
    """For each generator object of Python's and NumPy's that the model holds: what puts its state back."""
    numpy = sys.modules.get("numpy")
    for held in {id(held): held for held in _held_by(model)}.values():
        if type(held) is random.Random:
            yield functools.partial(held.setstate, held.getstate())
        elif numpy and type(held) is numpy.random.RandomState:
            yield functools.partial(held.set_state, held.get_state())
        elif numpy and type(held) is numpy.random.Generator:
            yield functools.partial(setattr, held.bit_generator, "state", held.bit_generator.state)


def _held_by(model: nn.Module) -> Iterator[Any]:
    """Attributes of modules, what functions among them close over, and the globals of the modules' code."""
    for kind in {type(module) for module in model.modules()}:
        yield from getattr(kind.forward, "__globals__", {}).values()
    for module in model.modules():
        for value in module.__dict__.values():
            yield value
            for cell in getattr(value, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # an empty cell
                    yield cell.cell_contents


@contextlib.contextmanager
def preserved(model: nn.Module, batch: Any) -> Iterator[Snapshot]:
    """Afterwards gradients of the model and of the batch, and all that a Snapshot holds, are as they were before."""
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
    tensors = enumerate(tensors_in(batch))
    return {f"input {n}": tensor for n, tensor in tensors if tensor.requires_grad and tensor.is_leaf}
