"""What runs of a model change: parameters, gradients, buffers, attributes, random states. Kept, and put back."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from megaselect.errors import VerificationError
from megaselect.tensor_bits import put_into
from megaselect.trees import map_tensors, tensors_in
from megaselect.verification.attributes import Attributes
from megaselect.verification.kept import PutBack, keep, reachable


class Snapshot:
    """Parameters, buffers, attributes of modules and random states as they were when it was taken.

    Of the model, and of modules that `loss_fn` is, is bound to or closes over. Random states are those of torch, Python
    and NumPy, of their generator objects that the modules hold (in attributes, closures and the globals of their code),
    and of each torch.Generator that a run has met (`meet`). Of `batch`, what is in it; runs have tensors of their own.
    """

    def __init__(self, model: nn.Module, batch: Any = None, loss_fn: Any = None) -> None:
        self.model = model
        self.loss_modules = modules_of_loss(loss_fn, model)
        modules = list(self._modules())
        self._parameters = [(tensor, _copy_of(name, tensor)) for name, tensor in self.parameters().items()]
        self._buffers = [_Buffers(module) for module in modules]
        self.attributes = Attributes(modules)
        self._batch = keep([batch])
        self.cpu_state = torch.get_rng_state()
        self.cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._put_back = [_global_states(), *_generators(modules, batch)]
        self._met: dict[int, tuple[torch.Generator, Tensor]] = {}

    def _modules(self) -> Iterator[nn.Module]:
        for root in (self.model, *self.loss_modules.values()):
            yield from root.modules()

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name, with `loss_fn.` before the names of those of a loss function."""
        found = dict(self.model.named_parameters())
        for name, module in self.loss_modules.items():
            found.update(module.named_parameters(prefix=name))
        return found

    def meet(self, generator: torch.Generator) -> None:
        """A run is about to draw from it; the first time, its state is kept."""
        self._met.setdefault(id(generator), (generator, generator.get_state()))

    def put_back(self) -> None:
        """Into the same tensors, which others may hold."""
        for tensor, kept in self._parameters:
            put_into(tensor, kept)
        for buffers in self._buffers:
            buffers.put_back()
        self.attributes.put_back()
        for put_back in self._batch:
            put_back()
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


class _Buffers:
    """Those of one module: which tensors they are, and what is in them. Forward code may put others in their place."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.names = module, set(dir(module))  # with those of buffers that are None
        self.kept = {name: (tensor, _copy_of(name, tensor)) for name, tensor in self._present()}

    def put_back(self) -> None:
        """The same tensors, with what was in them."""
        for name, _ in self._present():
            if name not in self.names:
                delattr(self.module, name)
            elif name not in self.kept:
                setattr(self.module, name, None)
        for name, (tensor, kept) in self.kept.items():
            if getattr(self.module, name, None) is not tensor:
                setattr(self.module, name, tensor)
            put_into(tensor, kept)

    def _present(self) -> list[tuple[str, Tensor]]:
        return list(self.module.named_buffers(recurse=False, remove_duplicate=False))


def _copy_of(name: str, tensor: Tensor) -> Tensor:
    """Raises VerificationError for one that a lazy module has not made yet."""
    if is_lazy(tensor):
        raise VerificationError(
            f"{name} has no shape before the model has seen a batch: run the model on one, such as model(batch), first"
        )
    return tensor.detach().clone()


def modules_of_loss(loss_fn: Any, model: nn.Module) -> dict[str, nn.Module]:
    """`loss_fn` and so on -> the modules that a loss function is, is bound to, is given or closes over.

    Parts of another of them, or of the model, are left out.
    """
    pending, found = [loss_fn], []
    while pending:
        held = pending.pop(0)
        if isinstance(held, nn.Module):
            found.append(held)
        elif isinstance(held, functools.partial):
            pending += [held.func, *held.args, *held.keywords.values()]
        elif isinstance(held, types.MethodType):
            pending += [held.__self__]
        elif isinstance(held, types.FunctionType):
            pending += _closed_over(held)
    known, roots = set(model.modules()), []
    for module in found:
        if module not in known:
            known.update(module.modules())
            roots.append(module)
    return {f"loss_fn {n}" if n else "loss_fn": module for n, module in enumerate(roots)}


def _global_states() -> PutBack:
    """What puts back the states that Python and NumPy have of their own."""
    state, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None

    def put_back() -> None:
        random.setstate(state)
        if numpy:
            numpy.random.set_state(numpy_state)

    return put_back


def _generators(modules: list[nn.Module], batch: Any) -> Iterator[PutBack]:
    """For each generator object of torch's, Python's and NumPy's that they hold: what puts its state back."""
    numpy = sys.modules.get("numpy")
    held_by_all = [*_globals_of(modules), *reachable([*_held_by(modules), batch])]
    for held in {id(held): held for held in held_by_all}.values():
        if isinstance(held, torch.Generator):
            yield functools.partial(held.set_state, held.get_state())
        elif type(held) is random.Random:
            yield functools.partial(held.setstate, held.getstate())
        elif numpy and type(held) is numpy.random.RandomState:
            yield functools.partial(held.set_state, held.get_state())
        elif numpy and type(held) is numpy.random.Generator:
            yield functools.partial(setattr, held.bit_generator, "state", held.bit_generator.state)


def _globals_of(modules: list[nn.Module]) -> Iterator[Any]:
    """Of the modules' code. Their containers are not looked into: in a notebook they hold all that was ever made."""
    for kind in {type(module) for module in modules}:
        yield from getattr(kind.forward, "__globals__", {}).values()


def _held_by(modules: list[nn.Module]) -> Iterator[Any]:
    """Attributes of modules, and what functions among them close over."""
    for module in modules:
        for value in module.__dict__.values():
            yield value
            yield from _closed_over(value)


def _closed_over(value: Any) -> Iterator[Any]:
    for cell in getattr(value, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents


@contextlib.contextmanager
def preserved(model: nn.Module, batch: Any, loss_fn: Any = None) -> Iterator[Snapshot]:
    """Afterwards gradients, and all that a Snapshot holds, are as they were before."""
    snapshot = Snapshot(model, batch, loss_fn)
    gradients = [(leaf, leaf.grad) for leaf in snapshot.parameters().values()]
    try:
        yield snapshot
    finally:
        for leaf, gradient in gradients:
            leaf.grad = gradient
        snapshot.put_back()


def leaves_of(batch: Any) -> dict[str, Tensor]:
    """`input 0` and so on -> the batch's tensors that ask for a gradient."""
    tensors = enumerate(tensors_in(batch))
    return {f"input {n}": tensor for n, tensor in tensors if tensor.requires_grad and tensor.is_leaf}


def own_copy(batch: Any, model: nn.Module) -> Any:
    """Containers and tensors of one run's own, since a model may change its batch. Each tensor is a leaf.

    What is twice in the batch is one tensor again. The model's own parameters stay themselves: they get gradients.
    """
    copies: dict[int, Tensor] = {id(parameter): parameter for parameter in model.parameters()}

    def copy_of(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return copies[id(tensor)]

    return map_tensors(copy_of, batch)
