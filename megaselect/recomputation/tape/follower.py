"""Follows a program through a later forward pass, without a dispatch mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from megaselect.compatibility import storage_address, version_of
from megaselect.recomputation.tape.calls import METADATA, SETTER, at, autocast_dtypes, is_same_constant, part_of
from megaselect.recomputation.tape.program import CallStep, PackStep, Program
from megaselect.recomputation.tape.random_states import random_state
from megaselect.recomputation.tape.replay import Frame, Recipe, Saved
from megaselect.recomputation.tape.values import Layout, Leaf, is_plain, layout_of


class Follower(TorchFunctionMode):
    """Where a call or a request of autograd's is not the program's, `departed` is called once, and takes over.

    departed(): gives what answers calls and requests from there on: an object with `call` and `pack`.
    """

    def __init__(self, program: Program, departed: Callable[[], Any]) -> None:
        super().__init__()
        self.program = program
        self.frame = Frame(program.uses, program.changed)
        self._calls, self._packs = program.calls, program.packs
        self._call, self._pack = 0, 0
        self._slots: list[Any] = [None] * program.slots
        self._registers: list[Any] = [None] * program.registers
        self._states: dict[int, Tensor] = {}
        self._copied: dict[int, Tensor] = {}  # slot with a copy -> what it is a copy of
        self._depart = departed
        self._heir: Any = None
        self.is_busy = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if type(func) is METADATA and func.__name__ != SETTER:
            result = func(*args)
            if not isinstance(result, Tensor):
                return result
        if self._heir is not None:
            return self._heir.call(func, args, kwargs or {})
        if self.is_busy:
            return func(*args, **kwargs) if kwargs else func(*args)
        number = self._call
        self._call = number + 1
        step = self._calls[number] if number < len(self._calls) else None
        if step is None or (step.func is not func and step.func != func):
            return self._departed(func, args, kwargs)
        if not step.is_checked:
            result = func(*args, **kwargs) if kwargs else func(*args)
            if step.results:
                self._file(step, result)
            return result
        return self._checked(step, func, args, kwargs or {})

    def _checked(self, step: CallStep, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that recipes depend on."""
        if step.autocast != autocast_dtypes() or not self._is_as_recorded(step, (args, kwargs)):
            return self._departed(func, args, kwargs)
        if step.state is not None:
            self._states[step.state[0]] = random_state(step.state[1])
        result = func(*args, **kwargs)
        self._file(step, result)
        return result

    def _is_as_recorded(self, step: CallStep, given: Any) -> bool:
        try:
            if tuple(given[1]) != step.keywords:
                return False
            for where, constant in step.constants:
                part = part_of(given, where)
                if part is not constant and not is_same_constant(part, constant):
                    return False
            for where, register in step.same:
                if part_of(given, where) is not self._registers[register]:
                    return False
            for where, slot, layout in step.captured:
                if not self._capture(part_of(given, where), slot, layout):
                    return False
            for where, slot, layout in step.copied:
                if not self._copy(part_of(given, where), slot, layout):
                    return False
            for where, slot, layout in step.again:
                if not self._is_again(part_of(given, where), slot, layout):
                    return False
        except (LookupError, TypeError, AttributeError):  # other arguments than were recorded
            return False
        return True

    def _capture(self, tensor: Any, slot: int, layout: Layout) -> bool:
        if not _reads_as(tensor, layout):
            return False
        self._slots[slot] = (tensor, version_of(tensor))
        return True

    def _copy(self, tensor: Any, slot: int, layout: Layout) -> bool:
        """Of a parameter that is freed when its module has run."""
        if not _reads_as(tensor, layout):
            return False
        self._copied[slot] = tensor
        self._slots[slot] = Leaf(tensor.detach().clone(), 0)
        return True

    def _is_again(self, tensor: Any, slot: int, layout: Layout) -> bool:
        held = self._slots[slot]
        if held is None or not _reads_as(tensor, layout):
            return False
        if slot in self._copied:
            return tensor is self._copied[slot]
        leaf, version = (held.tensor, held.version) if type(held) is Leaf else held
        same = tensor is leaf or storage_address(tensor) == storage_address(leaf)
        return same and version_of(tensor) == version

    def _file(self, step: CallStep, result: Any) -> None:
        if self._heir is not None:  # autograd asked for something else while the call ran
            return
        for path, register in step.results:
            self._registers[register] = at(result, path) if path else result
        for register in step.last:
            self._registers[register] = None

    def pack(self, tensor: Tensor) -> Any:
        """The saved-tensor hook of forward."""
        if self._heir is not None:
            return self._heir.pack(tensor)
        self.is_busy = True  # between two calls the mode would take what follows for the model's
        try:
            return self._packed(tensor)
        finally:
            self.is_busy = False

    def _packed(self, tensor: Tensor) -> Any:
        number = self._pack
        self._pack = number + 1
        step = self._packs[number] if number < len(self._packs) else None
        if step is None or step.value is None:
            return self._saved(step, tensor)
        if step.call != self._call or version_of(tensor) != step.version or not _reads_as(tensor, step.layout):
            self._take_over()
            return self._heir.pack(tensor)
        return self._recipe(step, tensor)

    def _saved(self, step: PackStep | None, tensor: Tensor) -> Saved:
        kept = Saved(tensor)
        if step is not None and step.slot is not None:
            if step.layout is None or not _reads_as(tensor, step.layout) or step.call != self._call:
                self._take_over()
            else:
                self._slots[step.slot] = Leaf(kept.tensor, kept.version)
        return kept

    def _recipe(self, step: PackStep, tensor: Tensor) -> Any:
        leaves = {}
        for number, slot in step.leaves:
            held = self._slots[slot]
            if type(held) is not Leaf:
                tensor_held, version = held
                is_history = tensor_held.requires_grad and not isinstance(tensor_held, nn.Parameter)
                held = self._slots[slot] = Leaf(tensor_held.detach() if is_history else tensor_held, version)
            leaves[number] = held
        states = {state: self._states[state] for state in step.states}
        for slot in step.last:
            self._slots[slot] = None
        assert step.value is not None
        assert step.layout is not None
        return Recipe(self.frame, step.value, step.layout, leaves, states, tensor)

    def _departed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
        self._take_over()
        return self._heir.call(func, args, kwargs or {})

    def _take_over(self) -> None:
        self.let_go()
        self._heir = self._depart()

    def let_go(self) -> None:
        """Of tensors: what recipes need they hold themselves."""
        self._slots, self._registers = [], []
        self._states, self._copied = {}, {}


def _reads_as(tensor: Any, layout: Layout | None) -> bool:
    return isinstance(tensor, Tensor) and is_plain(tensor) and layout_of(tensor) == layout
