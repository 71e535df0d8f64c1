"""Records one forward pass: which operator made each storage of what, and what autograd saved.

What autograd asks to save is answered at once, from what is known by then: a recipe where what the recipe reads is
saved already or is smaller, else the tensor itself. Each recipe is proved when it is written: it is run, and must give
the very bits. A kernel that writes past torch's dispatcher is found so, and its tensor is saved and named.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from megaselect.compatibility import TorchDispatchMode, is_fake, real_tensors, storage_address, version_of
from megaselect.recomputation.tape.calls import METADATA, Call, Origin, Path, flat
from megaselect.recomputation.tape.operators import (
    ALLOCATIONS,
    BATCH_NORMS,
    DRAWS,
    SHAPE_ONLY,
    STATISTICS,
    TRAINING,
    Operator,
    operator,
)
from megaselect.recomputation.tape.random_states import random_state
from megaselect.recomputation.tape.replay import Frame, Recipe, Saved, make, unpack
from megaselect.recomputation.tape.values import Leaf, Node, Place, Read, Value, is_plain, layout_of, whole_storage

SMALL = 1 << 16  # bytes: of a parameter that is only there while its module runs, a copy is made
Keep = Callable[[Operator, Place], bool]
_SWEEP = 64  # operators between two looks for storages that are gone


@dataclass(eq=False)
class Packed:
    """One request of autograd's to save a tensor. value: what a recipe was written for; None where it is saved."""

    call: int  # how many calls had begun
    tensor_layout: Any
    version: int
    value: Value | None = None
    saved: Value | None = None


@dataclass(eq=False)
class _Entry:
    """What is known of a storage that is alive."""

    alive: StorageWeakRef
    version: int
    value: Value


class Recording:
    """keep(operator, place): whether the results of an operator are saved if backward reads them.

    place: the path of the module that it runs in, its name, and how many of that name ran there before it. is_exact:
    all others are made again, whatever that needs; else only what costs fewer bytes than it saves.
    """

    def __init__(self, model: nn.Module, keep: Keep, *, has_long_recipes: bool = False, is_exact: bool = False) -> None:
        self.keep, self.is_exact = keep, is_exact
        self.frame = Frame()
        self.calls: list[Call] = []
        self.packs: list[Packed] = []
        self.saved: list[tuple[int, int, tuple[int, ...], torch.dtype]] = []  # pack, bytes, shape, dtype
        self.unproved: dict[str, int] = {}  # operator -> how many of its results were not what it gives again
        self.states: list[Tensor] = []
        self.operators = 0
        self._values = 0
        self.proofs = Frame(keeps_all=has_long_recipes)  # long ones share what they make, up to the next layer
        self._table: dict[int, _Entry] = {}
        self._owned = {storage_address(part) for part in (*model.parameters(), *model.buffers()) if is_plain(part)}
        self._made: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}  # id of a tensor -> the call that made it
        self._call: Call | None = None
        self._arguments: dict[int, tuple[Path, Tensor]] = {}  # id of a tensor that came into the call -> its path
        self._is_busy = False
        self._modules = [""]
        self._ran_in: dict[tuple[str, str], int] = defaultdict(int)
        self._place: Place = ("", "", 0)

    def enter_module(self, path: str) -> None:
        """What runs from here on runs in the module of this path."""
        self._modules.append(path)

    def leave_module(self) -> None:
        """The module's forward has ended."""
        self._modules.pop()

    # Calls of torch's interface

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and note it."""
        if self._is_busy:
            return func(*args, **kwargs)
        if type(func) is METADATA:
            result = func(*args)
            if not isinstance(result, Tensor):
                return result
            return self._noted(Call(len(self.calls), func), lambda *_, **__: result, args, kwargs)
        return self._noted(Call(len(self.calls), func), func, args, kwargs)

    def _noted(self, call: Call, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls.append(call)
        outside = self._call, self._arguments
        self._call, self._arguments = call, {}
        for path, part in flat((args, kwargs)):
            if isinstance(part, Tensor):
                self._arguments.setdefault(id(part), (path, part))
                call.origins[path] = self._origin(part)
                if is_plain(part):
                    call.layouts[path], call.versions[path] = layout_of(part), version_of(part)
            else:
                call.constants[path] = part
        try:
            result = func(*args, **kwargs)
        finally:
            came_in = self._arguments
            self._call, self._arguments = outside
        for path, part in flat(result):
            if isinstance(part, Tensor) and not self._is_unchanged(part, call, came_in):
                self._made[id(part)] = (weakref.ref(part), (call.number, path))
        return result

    @staticmethod
    def _is_unchanged(part: Tensor, call: Call, came_in: dict[int, tuple[Path, Tensor]]) -> bool:
        """Whether a result is an argument as it was: what a call writes into and returns is made by that call."""
        if id(part) not in came_in:
            return False
        version = call.versions.get(came_in[id(part)][0])
        return version is None or version == version_of(part)

    def _origin(self, tensor: Tensor) -> Origin | None:
        found = self._made.get(id(tensor))
        return found[1] if found and found[0]() is tensor else None

    # Operators below them

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run and note it."""
        if self._is_busy:
            return func(*args, **kwargs)
        known = operator(func)
        if known.is_view or func.namespace == "prim":  # tensors without values are asked for their device so
            return func(*args, **kwargs)
        self.operators += 1
        kind = (self._modules[-1], known.name)
        self._place = (*kind, self._ran_in[kind])
        self._ran_in[kind] += 1
        if self.operators % _SWEEP == 0:
            self._sweep()
        if self._call is not None:
            self._call.only_views = False
        if known.written:
            return self._write(known, func, args, kwargs)
        if not known.may_run_again or self.keep(known, self._place):
            self._count_draws(known)
            return func(*args, **kwargs)
        return self._run(known, func, args, kwargs)

    def _count_draws(self, known: Operator) -> None:
        if known.is_random and self._call is not None:
            self._call.draws += 1

    def _run(self, known: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [part for _, part in flat((args, kwargs)) if isinstance(part, Tensor)]
        device = tensors[0].device if tensors else torch.device(kwargs.get("device") or "cpu")
        state = self._state(known, device, kwargs)
        result = func(*args, **kwargs)
        results = result if isinstance(result, tuple | list) else (result,)
        made = [part for part in results if isinstance(part, Tensor)]
        if not made or not _can_be_read(tensors, made[0].device) or kwargs.get("generator") is not None:
            return result
        if known.name in BATCH_NORMS:
            if not args[TRAINING]:
                return result
            args = (*args[: STATISTICS.start], None, None, *args[STATISTICS.stop :])
        if known.name in SHAPE_ONLY:
            args = (self._blank(args[0]), *args[1:])
        number = -1 if self._call is None else self._call.number
        node = Node(func, self._reads(args), self._reads(kwargs), number, False, state, device, self._place)
        came_in = {storage_address(part) for part in tensors}
        for index, part in enumerate(results):
            if isinstance(part, Tensor) and is_plain(part) and storage_address(part) not in came_in:
                value = self._value(part.untyped_storage().nbytes(), node, index)
                node.results[index] = value.number
                self._enter(part, value)
        return result

    def _state(self, known: Operator, device: torch.device, kwargs: dict[str, Any]) -> int | None:
        if not known.is_random:
            return None
        self._count_draws(known)
        with real_tensors():
            self.states.append(random_state(device))
        return len(self.states) - 1

    def _write(self, known: Operator, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operator that writes into its arguments."""
        targets = [part for part in self._targets(known, args, kwargs) if is_plain(part)]
        old = [self._known(target) for target in targets]
        node = None
        if (
            known.may_run_again
            and not self.keep(known, self._place)
            and len(targets) == 1
            and old[0] is not None
            and old[0].node
        ):
            tensors = [part for _, part in flat((args, kwargs)) if isinstance(part, Tensor)]
            if _can_be_read(tensors, targets[0].device) and kwargs.get("generator") is None:
                state = self._state(known, targets[0].device, kwargs)
                number = -1 if self._call is None else self._call.number
                if known.name in DRAWS and _is_whole(targets[0]):
                    args_read = (self._blank(args[0]), *args[1:])  # also where it is an allocation, as for dropout
                else:
                    args_read = args
                reads = self._reads(args_read), self._reads(kwargs)
                node = Node(func, *reads, number, True, state, targets[0].device, self._place)
        if node is None:
            self._count_draws(known)
        for target, value in zip(targets, old, strict=True):
            if value is not None:
                self._before_change(value, target)
        result = func(*args, **kwargs)
        for target in targets:
            self._table.pop(storage_address(target), None)
        if node is not None:
            value = self._value(targets[0].untyped_storage().nbytes(), node, 0)
            node.results[0] = value.number
            self._enter(targets[0], value, version_of(targets[0]) + 1)  # counted above the dispatcher, after this
        return result

    def _targets(self, known: Operator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        if known.writes_elsewhere:
            return [part for _, part in flat((args, kwargs)) if isinstance(part, Tensor)]
        parts = [args[place] for place in known.written if place < len(args)]
        return [part for _, part in flat(parts) if isinstance(part, Tensor)]

    def _before_change(self, value: Value, target: Tensor) -> None:
        """Recipes read what is about to be written over: they get a copy. And what autograd asked for is no more."""
        value.changed = True
        self.frame.changed.add(value.number)
        if value.leaf is not None:
            with self._busy():
                value.leaf.tensor = whole_storage(target.detach()).clone()
            value.leaf.version = version_of(value.leaf.tensor)

    # Values

    def _value(self, nbytes: int, node: Node | None = None, index: int = 0) -> Value:
        self._values += 1
        return Value(self._values, nbytes, node, index)

    def _enter(self, tensor: Tensor, value: Value, version: int | None = None) -> None:
        alive = StorageWeakRef(tensor.untyped_storage())
        self._table[storage_address(tensor)] = _Entry(alive, version_of(tensor) if version is None else version, value)

    def _known(self, tensor: Tensor) -> Value | None:
        """What is known of the content that `tensor` reads now."""
        entry = self._table.get(storage_address(tensor))
        return entry.value if entry is not None and entry.version == version_of(tensor) else None

    def _reads(self, tree: Any) -> Any:
        if isinstance(tree, Read):
            return tree
        if isinstance(tree, Tensor):
            return self._read(tree)
        if isinstance(tree, tuple | list):
            return type(tree)(self._reads(part) for part in tree)
        if isinstance(tree, dict):
            return {key: self._reads(part) for key, part in tree.items()}
        return tree

    def _read(self, tensor: Tensor) -> Read:
        path, argument = self._argument_of(tensor)
        if (
            self._call is not None
            and path is not None
            and argument is not None
            and version_of(argument) != self._call.versions.get(path)
        ):
            path = None  # the call has changed it since it came in
        value = self._known(tensor)
        if value is None or _is_allocation(value):
            value = self._leaf_of(tensor, argument)
        elif value.node is None and value.leaf is None and argument is not None:
            value.leaf = self._leaf(argument)
            value.is_gathered = isinstance(argument, nn.Parameter)
        return Read(value, layout_of(tensor), path)

    def _argument_of(self, tensor: Tensor) -> tuple[Path | None, Tensor | None]:
        """By which path the tensor, or one over its storage, came into the call that runs."""
        found = self._arguments.get(id(tensor))
        if found is not None:
            return found
        address = storage_address(tensor)
        for path, argument in self._arguments.values():
            if is_plain(argument) and storage_address(argument) == address:
                return path, argument
        return None, None

    def _leaf_of(self, tensor: Tensor, argument: Tensor | None) -> Value:
        """The value of a storage whose maker is not known or will not run again."""
        value = self._value(tensor.untyped_storage().nbytes())
        if storage_address(tensor) in self._owned:
            value.is_owned = True
            value.leaf = Leaf(tensor if argument is None else argument, version_of(tensor))
        elif argument is not None:
            value.leaf = self._leaf(argument)
            value.is_gathered = isinstance(argument, nn.Parameter)
        self._enter(tensor, value)
        return value

    def _leaf(self, argument: Tensor) -> Leaf | None:
        """As it came into a call: with the version counter of its owner, which an alias made down here would lack."""
        if isinstance(argument, nn.Parameter):  # not the model's own: gathered for as long as its module runs
            if argument.untyped_storage().nbytes() > SMALL:
                return None
            return Leaf(argument.detach().clone(), 0)
        return Leaf(argument, version_of(argument))

    def _blank(self, tensor: Tensor) -> Read:
        """In place of an argument of which only the shape is read."""
        extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
        made = {"dtype": tensor.dtype, "device": tensor.device}
        node = Node(torch.ops.aten.empty_strided.default, ((extent if tensor.numel() else 0,), (1,)), made, -2)
        value = self._value(0, node)
        node.results[0] = value.number
        return Read(value, layout_of(tensor)._replace(offset=0))

    def _sweep(self) -> None:
        for address in [address for address, entry in self._table.items() if entry.alive.expired()]:
            del self._table[address]

    # What autograd saves

    def pack(self, tensor: Tensor) -> Any:
        """The saved-tensor hook of forward."""
        with self._busy():
            return self._pack(tensor)

    def _pack(self, tensor: Tensor) -> Any:
        packed = Packed(len(self.calls), None, version_of(tensor))
        self.packs.append(packed)
        if not is_plain(tensor) or storage_address(tensor) in self._owned or self._is_gathered(tensor):
            return Saved(tensor)
        packed.tensor_layout = layout_of(tensor)
        value = self._known(tensor)
        if value is None:
            value = self._value(tensor.untyped_storage().nbytes())
            self._enter(tensor, value)
        if not value.is_leaf and self._is_worth_it(value) and self._is_proved(value, tensor):
            packed.value = value
            return self._recipe(value, tensor)
        return self._saved(value, tensor, packed)

    def _is_gathered(self, tensor: Tensor) -> bool:
        """Whether it is over a parameter that is not the model's own: no recipe may count on it."""
        return isinstance(self._argument_of(tensor)[1], nn.Parameter)

    def _saved(self, value: Value, tensor: Tensor, packed: Packed) -> Saved:
        kept = Saved(tensor)
        packed.saved = value
        if value.saved_by is None:
            value.saved_by = len(self.packs) - 1
        self._save(value, kept.tensor)
        return kept

    def _save(self, value: Value, tensor: Tensor) -> None:
        """Recipes read it from here on. How it was made is forgotten, so that what it was made of can be let go."""
        if value.leaf is None:
            value.leaf = Leaf(tensor, version_of(tensor))
        if not value.in_recipe:
            value.node = None
        self._count(value, tensor)

    def _count(self, value: Value, tensor: Tensor) -> None:
        if not value.is_saved and not value.is_owned:
            value.is_saved = True
            self.saved.append((len(self.packs) - 1, value.nbytes, tuple(tensor.shape), tensor.dtype))

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        """What runs inside is the recorder's own."""
        outside, self._is_busy = self._is_busy, True
        try:
            yield
        finally:
            self._is_busy = outside

    def layer_begins(self, tensors: list[Tensor]) -> None:
        """What comes into a layer of `full`: saved, and nothing before it runs again."""
        with self._busy():
            self._save_inputs(tensors)

    def _save_inputs(self, tensors: list[Tensor]) -> None:
        self.proofs = Frame(keeps_all=self.proofs.keeps_all)
        for tensor in tensors:
            if not is_plain(tensor) or not tensor.requires_grad or storage_address(tensor) in self._owned:
                continue
            value = self._known(tensor)
            if value is None:
                value = self._value(tensor.untyped_storage().nbytes())
                self._enter(tensor, value)
            if not value.is_saved:
                self._save(value, _detached(tensor))

    def forget(self) -> None:
        """Let go of tensors: what recipes need they hold themselves."""
        for packed in self.packs:
            for value in (packed.value, packed.saved):
                if value is not None:
                    _forget(value)
        self._table.clear()
        self._made.clear()
        self.states.clear()

    def _is_worth_it(self, value: Value) -> bool:
        """Whether what the recipe would read and is not saved yet is smaller than the value."""
        leaves, states = needed(value)
        if any(leaf.leaf is None for leaf in leaves) or _is_allocation(value):
            return False
        if self.is_exact:
            return True
        dear = sum(leaf.nbytes for leaf in leaves if not leaf.is_saved and not leaf.is_owned)
        return dear + sum(self.states[state].nbytes for state in states) < value.nbytes

    def _recipe(self, value: Value, tensor: Tensor) -> Recipe:
        leaves, states = needed(value, self._use)
        for leaf in leaves:
            assert leaf.leaf is not None
            if leaf.leaf.tensor.requires_grad and not leaf.is_owned:
                leaf.leaf.tensor = _detached(leaf.leaf.tensor)
            self._count(leaf, leaf.leaf.tensor)
        kept = {leaf.number: leaf.leaf for leaf in leaves if leaf.leaf}
        return Recipe(
            self.frame, value, layout_of(tensor), kept, {state: self.states[state] for state in states}, tensor
        )

    @staticmethod
    def _use(value: Value) -> None:
        value.in_recipe = True

    def _is_proved(self, value: Value, tensor: Tensor) -> bool:
        """Whether the recipe gives these bits, now."""
        if is_fake(tensor):
            return True
        leaves, states = needed(value)
        kept = {leaf.number: leaf.leaf for leaf in leaves if leaf.leaf}
        with torch.no_grad():
            again = layout_of(tensor).of(make(value, self.proofs, kept, {s: self.states[s] for s in states}))
            is_same = _same_bits(again, tensor)
        if not is_same:
            name = _maker(value)
            self.unproved[name] = self.unproved.get(name, 0) + 1
        return is_same


def _forget(value: Value) -> None:
    todo, seen = [value], set()
    while todo:
        one = todo.pop()
        if one.number not in seen:
            seen.add(one.number)
            one.leaf = None
            if one.node is not None:
                todo += [read.value for read in one.node.reads()]


def needed(value: Value, visit: Callable[[Value], None] = lambda _: None) -> tuple[list[Value], list[int]]:
    """What a recipe of `value` reads: values that are not made again, and random states.

    visit is called for each value that is.
    """
    leaves: dict[int, Value] = {}
    states: dict[int, None] = {}
    seen: set[int] = set()
    todo = [value]
    while todo:
        one = todo.pop()
        if one.number in seen:
            continue
        seen.add(one.number)
        if one.is_leaf:
            leaves[one.number] = one
            continue
        assert one.node is not None
        visit(one)
        if one.node.state is not None:
            states[one.node.state] = None
        todo += [read.value for read in one.node.reads()]
    return list(leaves.values()), list(states)


def _maker(value: Value) -> str:
    """Name of the operator that made it; "" where none is known."""
    return operator(value.node.func).name if value.node else ""


def _is_whole(tensor: Tensor) -> bool:
    """Whether `tensor` is all of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _is_allocation(value: Value) -> bool:
    return _maker(value) in ALLOCATIONS


def _detached(tensor: Tensor) -> Tensor:
    """Without its history: a result and its graph would else hold each other for ever."""
    return tensor.detach() if tensor.requires_grad else tensor


def _can_be_read(tensors: list[Tensor], device: torch.device) -> bool:
    return all(is_plain(part) and (part.device == device or not part.dim()) for part in tensors)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))


class Calls(TorchFunctionMode):
    """Shows a recording the calls of torch's interface."""

    def __init__(self, recording: Any) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.call(func, args, kwargs or {})


class Operators(TorchDispatchMode):
    """Shows a recording the operators."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.operator(func, args, kwargs or {})


@contextlib.contextmanager
def recorded_by(recording: Recording) -> Iterator[None]:
    """Inside, a forward pass is recorded."""
    hooks = torch.autograd.graph.saved_tensors_hooks(recording.pack, unpack)
    with hooks, Calls(recording), Operators(recording):
        yield
