"""Outputs of modules that are not saved: backward has the module make them again of its input.

For modules that are cheap for what they save: norms and activations. Where autograd asks to save such an output, the
module is kept in its place, and its input, which mostly it has saved itself.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef

from megaselect.compatibility import outer_hooks, storage_address, version_of
from megaselect.errors import RecomputeError
from megaselect.recomputation.random_states import all_equal, random_states
from megaselect.recomputation.tape.calls import autocast_as, autocast_dtypes
from megaselect.recomputation.tape.replay import Saved, changed_in_place, unpack
from megaselect.recomputation.tape.values import Layout, is_plain, layout_of

Unpack = Callable[[Any], Tensor]
Kinds = Mapping[str, Sequence[nn.Module]]  # what errors call them -> modules that take one tensor and return one


@contextlib.contextmanager
def outputs_remade(name: str, kinds: Kinds, unhooked: Collection[nn.Module] = ()) -> Iterator[None]:
    """Inside, what the modules of `kinds` return is not saved for backward: they run again there.

    name: what they are part of, for errors. unhooked: those that run without being called, and of which `made_by`
    tells. Where gradients are off, or a compiler traces, all is saved. Backward raises RecomputeError for a module that
    draws random numbers.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    outputs = _Outputs(name, kinds)
    outside, _running.outputs = _running.outputs, outputs
    try:
        with ExitStack() as stack:
            for module in outputs.kind_of:
                if module not in unhooked:
                    stack.callback(module.register_forward_hook(outputs.after).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(outputs.pack, unpack))
            yield
    finally:
        _running.outputs = outside
        outputs.let_go()


def made_by(module: nn.Module, source: Tensor, output: Tensor) -> None:
    """Say that `output` is module(source), where it came about without that call."""
    if _running.outputs is not None:
        _running.outputs.note(module, source, output)


class _Making(NamedTuple):
    """How an output came about. alive, version: of its storage."""

    alive: StorageWeakRef
    version: int
    module: nn.Module
    source: Tensor
    layout: Layout


class _Outputs:
    """What is known while a layer runs."""

    def __init__(self, name: str, kinds: Kinds) -> None:
        self.kind_of = {module: kind for kind, modules in kinds.items() for module in modules}
        self._name = name
        self._outer = outer_hooks()
        self._makings: dict[int, _Making] = {}  # by the address of the output's storage
        self._remakers: dict[int, _Remaker] = {}  # by the same, of those that were asked for

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """The forward hook."""
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            self.note(module, args[0], output)

    def note(self, module: nn.Module, source: Tensor, output: Tensor) -> None:
        """See made_by."""
        if module in self.kind_of and is_plain(source) and is_plain(output):
            alive, address = StorageWeakRef(output.untyped_storage()), storage_address(output)
            self._makings[address] = _Making(alive, version_of(output), module, source, layout_of(output))
            self._remakers.pop(address, None)

    def let_go(self) -> None:
        """Of tensors: autograd keeps its hooks, and they would keep its graph."""
        self._makings.clear()
        self._remakers.clear()

    def pack(self, tensor: Tensor) -> Any:
        """The saved-tensor hook of forward."""
        remaker = self._remaker_of(tensor) if is_plain(tensor) else None
        return self._kept(tensor) if remaker is None else _RemadeOutput(remaker, tensor)

    def _remaker_of(self, tensor: Tensor) -> _Remaker | None:
        address = storage_address(tensor)
        making = self._makings.get(address)
        if making is None or making.alive.expired() or making.version != version_of(tensor):
            return None
        if address not in self._remakers:
            kind = self.kind_of[making.module]
            self._remakers[address] = _Remaker(making, self._kept(making.source), self._name, kind)
        return self._remakers[address]

    def _kept(self, tensor: Tensor) -> Any:
        """As without us: torch calls the innermost saved-tensor hooks alone."""
        return Saved(tensor) if self._outer is None else _HandedOut(self._outer[0](tensor), self._outer[1])


class _Running(threading.local):
    outputs: _Outputs | None = None


_running = _Running()


class _HandedOut:
    """What the saved-tensor hooks around ours keep of a tensor."""

    __slots__ = ("_kept", "_unpack")

    def __init__(self, kept: Any, unpack: Unpack) -> None:
        self._kept, self._unpack = kept, unpack

    def read_tensors(self) -> list[Tensor]:
        """None: those who keep them tell."""
        return []

    def random_states(self) -> list[Tensor]:
        """None."""
        return []

    def make(self) -> Tensor:
        """What they give back."""
        return self._unpack(self._kept)


class _Remaker:
    """Makes an output again, once for all who ask while it is there."""

    def __init__(self, making: _Making, source: Any, name: str, kind: str) -> None:
        self.source = source
        self._module, self._layout, self._name, self._kind = making.module, making.layout, name, kind
        self._autocast = autocast_dtypes()
        self._parameters: dict[str, Tensor] = dict(making.module.named_parameters())
        self._again: weakref.ref[Tensor] | None = None

    def output(self) -> Tensor:
        """The same bits as in forward. Raises RecomputeError where the module draws random numbers."""
        again = self._again() if self._again else None
        if again is None:
            again = self._made()
            self._again = weakref.ref(again)
        return again

    def _made(self) -> Tensor:
        source = self.source.make()
        before = random_states(source.device)
        with torch.no_grad(), autocast_as(self._autocast):
            made = self._run(source)
        if not all_equal(before, random_states(source.device)):
            raise RecomputeError(
                f"{self._name}: {type(self._module).__name__} draws random numbers, so it cannot be recomputed from "
                f"its input: leave {self._kind} out of --recompute-modules, or use --recompute full"
            )
        assert layout_of(made) == self._layout
        return made

    def _run(self, source: Tensor) -> Tensor:
        """With the parameters that it had: others may have been put into their places."""
        now = self._module.named_parameters()
        if all(self._parameters.get(name) is parameter for name, parameter in now):
            made: Tensor = self._module(source)
        else:
            made = functional_call(self._module, self._parameters, source)
        return made


class _RemadeOutput:
    """In place of a tensor over such an output."""

    __slots__ = ("_alive", "_layout", "_remaker", "_version")

    def __init__(self, remaker: _Remaker, tensor: Tensor) -> None:
        self._remaker, self._layout = remaker, layout_of(tensor)
        self._alive, self._version = weakref.ref(tensor), version_of(tensor)

    def read_tensors(self) -> list[Tensor]:
        """The module's input."""
        kept: list[Tensor] = self._remaker.source.read_tensors()
        return kept

    def random_states(self) -> list[Tensor]:
        """None: a module that draws random numbers is refused."""
        return []

    def make(self) -> Tensor:
        """The tensor. Raises RuntimeError, as autograd does, where it or the module's input was changed in place."""
        tensor = self._alive()
        if tensor is not None and version_of(tensor) != self._version:
            raise changed_in_place(self._layout.dtype, self._layout.size)
        return self._layout.of(self._remaker.output())
