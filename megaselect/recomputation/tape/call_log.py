"""Notes the calls of torch's Python interface while a forward pass runs, and knows what came into the one that runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from megaselect.compatibility import storage_address, version_of
from megaselect.recomputation.tape.calls import METADATA, SETTER, Call, Origin, Path, autocast_dtypes, flat
from megaselect.recomputation.tape.values import is_plain, layout_of

_Arguments = dict[int, tuple[Path, Tensor]]  # id of a tensor -> by which path it came in, first of all


class CallLog:
    """calls: all so far. current: the one that runs, if any."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.current: Call | None = None
        self._arguments: _Arguments = {}  # of the current call
        self._made: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}  # id of a tensor -> the call that made it

    @property
    def number(self) -> int:
        """Of the current call; -1: none runs."""
        return -1 if self.current is None else self.current.number

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the call and note it."""
        call = Call(len(self.calls), func, autocast_dtypes())
        if type(func) is not METADATA or func.__name__ == SETTER:
            return self._noted(call, func, args, kwargs)
        result = func(*args)
        return self._noted(call, lambda *_, **__: result, args, kwargs) if isinstance(result, Tensor) else result

    def _noted(self, call: Call, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append(call)
        outside = self.current, self._arguments
        self.current, self._arguments = call, self._note_arguments(call, args, kwargs)
        try:
            result = func(*args, **kwargs)
        finally:
            came_in = self._arguments
            self.current, self._arguments = outside
        for path, part in flat(result):
            if isinstance(part, Tensor) and not _is_unchanged(part, call, came_in):
                self._made[id(part)] = (weakref.ref(part), (call.number, path))
        return result

    def _note_arguments(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Arguments:
        arguments: _Arguments = {}
        for path, part in flat((args, kwargs)):
            if not isinstance(part, Tensor):
                call.constants[path] = part
                continue
            arguments.setdefault(id(part), (path, part))
            call.origins[path] = self._origin(part)
            if is_plain(part):
                call.layouts[path], call.versions[path] = layout_of(part), version_of(part)
        return arguments

    def _origin(self, tensor: Tensor) -> Origin | None:
        found = self._made.get(id(tensor))
        return found[1] if found and found[0]() is tensor else None

    def argument_of(self, tensor: Tensor) -> tuple[Path | None, Tensor | None]:
        """By which path the tensor, or one over its storage, came into the call that runs, and which it is."""
        found = self._arguments.get(id(tensor))
        if found is not None:
            return found
        address = storage_address(tensor)
        for path, argument in self._arguments.values():
            if is_plain(argument) and storage_address(argument) == address:
                return path, argument
        return None, None

    def is_as_it_came(self, path: Path, argument: Tensor) -> bool:
        """Whether the call that runs has not written into this argument so far."""
        return self.current is None or version_of(argument) == self.current.versions.get(path)

    def forget_tensors(self) -> None:
        """Who made what is not asked any more."""
        self._made.clear()


def _is_unchanged(part: Tensor, call: Call, came_in: _Arguments) -> bool:
    """Whether a result is an argument as it was: what a call writes into and returns is made by that call."""
    if id(part) not in came_in:
        return False
    version = call.versions.get(came_in[id(part)][0])
    return version is None or version == version_of(part)
