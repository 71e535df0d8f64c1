"""Records one forward pass: which operator made each storage of what, and what autograd saved."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.compatibility import argument_names, is_in_backward, real_tensors, storage_address, version_of
from megaselect.recomputation.tape.call_log import CallLog
from megaselect.recomputation.tape.calls import flat
from megaselect.recomputation.tape.contents import Contents
from megaselect.recomputation.tape.operators import (
    BATCH_NORMS,
    DRAWS,
    ESCAPES,
    READS_VALUES,
    SHAPE_ONLY,
    STATISTICS,
    TRAINING,
    Operator,
    operator,
)
from megaselect.recomputation.tape.random_states import random_state
from megaselect.recomputation.tape.reads import Reader
from megaselect.recomputation.tape.saving import Saving
from megaselect.recomputation.tape.values import Node, Place, Value, is_plain

Keep = Callable[[Operator, Place], bool]
_SWEEP = 64  # operators between two looks for storages that are gone


class Recording:
    """keep(operator, place): whether the results of an operator are saved if backward reads them.

    place: the path of the module that it runs in, its name, and how many of that name ran there before it. is_exact:
    all others are made again, whatever that needs; else only what costs fewer bytes than it saves.
    """

    def __init__(self, model: nn.Module, keep: Keep, *, has_long_recipes: bool = False, is_exact: bool = False) -> None:
        self.keep = keep
        self.log = CallLog()
        self.contents = Contents(model)
        self.saving = Saving(self.contents, self.log, has_long_recipes=has_long_recipes, is_exact=is_exact)
        self._reader = Reader(self.contents, self.log)
        self._operators = 0
        self._modules = [""]
        self._ran_in: dict[tuple[str, str], int] = defaultdict(int)
        self._place: Place = ("", "", 0)

    def enter_module(self, path: str) -> None:
        """What runs from here on runs in the module of this path."""
        self._modules.append(path)

    def leave_module(self) -> None:
        """The module's forward has ended."""
        self._modules.pop()

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call of torch's interface, and note it."""
        if self.saving.is_busy:
            return func(*args, **kwargs)
        if func in ESCAPES:
            for tensor in filter(is_plain, _tensors(args, kwargs)):
                self.contents.escapes(tensor)
        return self.log.run(func, args, kwargs)

    def pack(self, tensor: Tensor) -> Any:
        """The saved-tensor hook of forward."""
        return self.saving.pack(tensor)

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and note it."""
        if self.saving.is_busy:
            return func(*args, **kwargs)
        known = operator(func)
        if known.is_view or func.namespace == "prim":  # tensors without values are asked for their device so
            return func(*args, **kwargs)
        self._come_to(known)
        if known.written:
            return self._write(known, func, args, kwargs)
        if not known.may_run_again or self.keep(known, self._place):
            self._count_draws(known)
            return func(*args, **kwargs)
        return self._run(known, func, args, kwargs)

    def _come_to(self, known: Operator) -> None:
        self._operators += 1
        if self._operators % _SWEEP == 0:
            self.contents.sweep()
        kind = (self._modules[-1], known.name)
        self._place = (*kind, self._ran_in[kind])
        self._ran_in[kind] += 1
        if self.log.current is not None:
            self.log.current.only_views = False
            self.log.current.is_opaque |= known.name in READS_VALUES or is_in_backward()

    def _count_draws(self, known: Operator) -> None:
        if known.is_random and self.log.current is not None:
            self.log.current.draws += 1

    def _run(self, known: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = _tensors(args, kwargs)
        device = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        state = self._state(known, device)
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        made = [part for part in results if isinstance(part, Tensor)]
        if not made or not _can_run_again(tensors, made[0].device, kwargs):
            return result
        args_read = self._arguments_read(known, args)
        if args_read is not None:
            if not tensors and "dtype" in argument_names(func):
                kwargs = kwargs | {"dtype": made[0].dtype}  # torch's default one may be another when it runs again
            node = self._node(func, args_read, kwargs, device, state)
            self._enter_results(node, results, tensors)
        return result

    def _arguments_read(self, known: Operator, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The arguments that count when it runs again; None where it will not give the same."""
        if known.name in BATCH_NORMS:
            return (*args[: STATISTICS.start], None, None, *args[STATISTICS.stop :]) if args[TRAINING] else None
        if known.name in SHAPE_ONLY:
            return (self._reader.blank(args[0]), *args[1:])
        return args

    def _node(
        self, func: Any, args: Any, kwargs: Any, device: torch.device, state: int | None, *, written: bool = False
    ) -> Node:
        reads = self._reader.reads(args), self._reader.reads(kwargs)
        return Node(func, *reads, self.log.number, written, state, device, self._place)

    def _enter_results(self, node: Node, results: Any, tensors: list[Tensor]) -> None:
        came_in = {storage_address(part) for part in tensors}
        for index, part in enumerate(results):
            if isinstance(part, Tensor) and is_plain(part) and storage_address(part) not in came_in:
                value = self.contents.new_value(part.untyped_storage().nbytes(), node, index)
                node.results[index] = value.number
                self.contents.enter(part, value)

    def _state(self, known: Operator, device: torch.device) -> int | None:
        """The number of the random state that a random operator draws from."""
        if not known.is_random:
            return None
        self._count_draws(known)
        with real_tensors():
            self.saving.states.append(random_state(device))
        return len(self.saving.states) - 1

    def _write(self, known: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that writes into its arguments."""
        targets = [part for part in _targets(known, args, kwargs) if is_plain(part)]
        old = [self.contents.value_of(target) for target in targets]
        node = None
        if known.may_run_again and not self.keep(known, self._place) and len(targets) == 1 and old[0] and old[0].node:
            node = self._writing_node(known, func, args, kwargs, targets[0])
        if node is None:
            self._count_draws(known)
        for target, value in zip(targets, old, strict=True):
            changed = value or self.contents.value_at_any_version(target)
            if changed is not None:
                self.saving.before_change(changed, target, is_told=value is not None)
        result = func(*args, **kwargs)
        for target in targets:
            self.contents.forget(target)
        if node is not None:
            self._enter_written(node, targets[0])
        return result

    def _writing_node(
        self, known: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Tensor
    ) -> Node | None:
        if not _can_run_again(_tensors(args, kwargs), target.device, kwargs):
            return None
        state = self._state(known, target.device)
        if known.name in DRAWS and _is_whole(target):  # also where it is an allocation, as for dropout
            args = (self._reader.blank(args[0]), *args[1:])
        return self._node(func, args, kwargs, target.device, state, written=True)

    def _enter_written(self, node: Node, target: Tensor) -> None:
        value: Value = self.contents.new_value(target.untyped_storage().nbytes(), node, 0)
        node.results[0] = value.number
        self.contents.enter(target, value, version_of(target) + 1)  # counted above the dispatcher, after this

    def forget_tensors(self) -> None:
        """Let go of tensors: what recipes need they hold themselves."""
        self.saving.forget_tensors()
        self.contents.clear()
        self.log.forget_tensors()


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [part for _, part in flat((args, kwargs)) if isinstance(part, Tensor)]


def _targets(known: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """What it writes into, as far as its schema says."""
    if known.writes_elsewhere:
        return _tensors(args, kwargs)
    return _tensors([args[place] for place in known.written if place < len(args)], {})


def _is_whole(tensor: Tensor) -> bool:
    """Whether `tensor` is all of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _can_run_again(tensors: list[Tensor], device: torch.device, kwargs: dict[str, Any]) -> bool:
    """Whether its arguments can be read again later, and its random numbers drawn again."""
    is_readable = all(is_plain(part) and (part.device == device or not part.dim()) for part in tensors)
    return is_readable and kwargs.get("generator") is None
