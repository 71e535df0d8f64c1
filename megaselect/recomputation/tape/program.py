"""From a recording to a program: what a later step of the same calls checks, notes and saves, by number alone.

The later step runs without a dispatch mode. What its recipes would make again is known from the calls of torch's
interface: the same functions with the same constants, each given the result of the call that gave it when recorded.
What comes from elsewhere is read from the tensor that really came. So a recipe is right, or it is not written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from megaselect.recomputation.tape.calls import KEYS, LENGTH, Autocast, Origin, Path, Where, where_of
from megaselect.recomputation.tape.recorder import Recording
from megaselect.recomputation.tape.saving import Packed
from megaselect.recomputation.tape.values import Layout, Node, Read, Value


@dataclass(eq=False, slots=True)
class CallStep:
    """What a follower does at a call. is_checked: whether recipes depend on it; if not, its function alone is compared.

    autocast: what held when it began. keywords: of its arguments. constants: (where, value). same: (where, register):
    this very object came. captured: (where, slot, layout): what came is put into the slot. copied: a copy of it is.
    again: the same, where the slot has been filled: over the same storage. results: (path, register). state: slot of
    the random state before the call, and its device. last: registers not read after it.
    """

    func: Any
    autocast: Autocast
    is_checked: bool = False
    keywords: tuple[str, ...] = ()
    constants: list[tuple[Where, Any]] = field(default_factory=list)
    same: list[tuple[Where, int]] = field(default_factory=list)
    captured: list[tuple[Where, int, Layout]] = field(default_factory=list)
    copied: list[tuple[Where, int, Layout]] = field(default_factory=list)
    again: list[tuple[Where, int, Layout]] = field(default_factory=list)
    results: list[tuple[Path, int]] = field(default_factory=list)
    state: tuple[int, torch.device] | None = None
    last: list[int] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class PackStep:
    """What a follower does where autograd asks to save a tensor: `call` calls have begun.

    value: what a recipe is written for, None where the tensor is saved. leaves: (number of a value, slot). slot: where
    the tensor is put for recipes to read. last: slots that no later recipe reads.
    """

    call: int
    layout: Layout | None
    version: int
    value: Value | None = None
    leaves: tuple[tuple[int, int], ...] = ()
    states: tuple[int, ...] = ()
    slot: int | None = None
    last: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Program:
    """Of one recording. uses, changed: as a Frame has them. saved: bytes of each storage that is saved for backward."""

    calls: list[CallStep]
    packs: list[PackStep]
    uses: dict[int, int]
    changed: set[int]
    slots: int = 0
    registers: int = 0
    saved: dict[int, int] = field(default_factory=dict)
    states: int = 0

    @property
    def bytes(self) -> int:
        """Saved for backward: storages, each once, and random states."""
        return sum(self.saved.values()) + self.states


class NotFollowed(Exception):
    """A recipe reads what a follower cannot find again; its tensor is saved instead."""


def uses_of(packs: list[Packed]) -> dict[int, int]:
    """Number of a value -> how many recipes and operators in recipes ask for it."""
    uses: dict[int, int] = {}
    seen: set[int] = set()
    for packed in packs:
        if packed.value is not None:
            uses[packed.value.number] = uses.get(packed.value.number, 0) + 1
            for node in _nodes(packed.value):
                if id(node) not in seen:
                    seen.add(id(node))
                    for read in node.reads():
                        uses[read.value.number] = uses.get(read.value.number, 0) + 1
    return uses


def _nodes(value: Value) -> Iterator[Node]:
    """Every operator that a recipe of `value` runs."""
    seen: set[int] = set()
    todo = [value]
    while todo:
        one = todo.pop()
        if one.is_leaf or one.node is None or id(one.node) in seen:
            continue
        seen.add(id(one.node))
        yield one.node
        todo += [read.value for read in one.node.reads()]


class _Places:
    """What one recipe needs of the calls: gathered first, since a recipe that cannot be followed must leave nothing."""

    def __init__(self, recording: Recording, number: int, packed: Packed) -> None:
        self.recording, self.number, self.packed = recording, number, packed
        self.same: dict[tuple[int, Path], Origin] = {}  # (call, path) -> the result that must come in
        self.reads: dict[int, list[tuple[int, Path, Layout]]] = {}  # number of a leaf -> where it comes in
        self.leaves: dict[int, Value] = {}
        self.states: dict[int, Node] = {}
        self.checked: set[int] = set()
        assert packed.value is not None
        nodes = list(_nodes(packed.value))
        self.checked |= {node.call for node in nodes if node.call >= 0}
        for node in nodes:
            self._add(node)

    def _add(self, node: Node) -> None:
        if node.call == -1 or (node.call >= 0 and self.recording.log.calls[node.call].is_opaque):
            raise NotFollowed
        if node.state is not None:
            if self.recording.log.calls[node.call].draws != 1:
                raise NotFollowed
            self.states[node.state] = node
        for read in node.reads():
            if read.value.is_leaf:
                self._add_leaf(node, read)
            elif read.path is not None:
                self._add_origin(node.call, read.path)
            elif read.value.node is None or read.value.node.call not in (node.call, -2):
                raise NotFollowed

    def _add_leaf(self, node: Node, read: Read) -> None:
        value = read.value
        if value.changed:
            raise NotFollowed
        self.leaves[value.number] = value
        places = self.reads.setdefault(value.number, [])
        if read.path is not None:
            places.append((node.call, read.path, self._layout(node.call, read.path)))
        elif value.saved_by is None or value.saved_by >= self.number:
            raise NotFollowed

    def _layout(self, call: int, path: Path) -> Layout:
        layout = self.recording.log.calls[call].layouts.get(path)
        if layout is None:
            raise NotFollowed
        return layout

    def _add_origin(self, call: int, path: Path) -> None:
        origin = self.recording.log.calls[call].origins.get(path)
        if origin is None:
            raise NotFollowed
        if (call, path) in self.same:
            return
        self.same[call, path] = origin
        maker = self.recording.log.calls[origin[0]]
        if maker.number in self.checked:
            return
        if not maker.only_views:
            raise NotFollowed
        self.checked.add(maker.number)
        for inner in maker.origins:
            self._add_origin(maker.number, inner)


class Compiler:
    """Turns a recording into a program."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.calls = [CallStep(call.func, call.autocast) for call in recording.log.calls]
        self.packs = [PackStep(packed.call, packed.tensor_layout, packed.version) for packed in recording.saving.packs]
        self.slots: dict[int, int] = {}  # number of a leaf -> its slot
        self.registers: dict[Origin, int] = {}
        self.last_reader: dict[int, int] = {}  # register -> call
        self.last_recipe: dict[int, int] = {}  # slot -> request
        self.states: set[int] = set()
        self.saved: dict[int, int] = {}
        self.seen: set[tuple[int, Path]] = set()
        self.reads: dict[Value, list[tuple[int, Path, Layout]]] = {}

    def program(self) -> Program:
        """The program."""
        followed: list[tuple[int, _Places]] = []
        for number, packed in enumerate(self.recording.saving.packs):
            if packed.value is None or packed.value.is_leaf:  # or saved later on, where a layer began with it
                self._save(packed.saved or packed.value)
                continue
            try:
                followed.append((number, _Places(self.recording, number, packed)))
            except NotFollowed:
                self._save(packed.value)
        for number, places in followed:
            self._add(number, places)
        for leaf, reads in self.reads.items():
            self._fill(leaf, sorted(reads, key=lambda read: read[0]))
        for register, call in self.last_reader.items():
            self.calls[call].last.append(register)
        for slot, number in self.last_recipe.items():
            self.packs[number].last.append(slot)
        packs = [places.packed for _, places in followed]
        states = sum(self.recording.saving.states[state].nbytes for state in self.states)
        return Program(
            calls=self.calls,
            packs=self.packs,
            uses=uses_of(packs),
            changed=self.recording.saving.frame.changed,
            slots=len(self.slots),
            registers=len(self.registers),
            saved=self.saved,
            states=states,
        )

    def _save(self, value: Value | None) -> None:
        if value is not None and not value.is_owned:
            self.saved[value.number] = value.nbytes

    def _add(self, number: int, places: _Places) -> None:
        step = self.packs[number]
        step.value = places.packed.value
        for call in places.checked:
            self._check(call)
        for (call, path), origin in places.same.items():
            self._must_be(call, path, origin)
        leaves = []
        for leaf in places.leaves.values():
            self._save(leaf)
            slot = self.slots.setdefault(leaf.number, len(self.slots))
            self.reads.setdefault(leaf, []).extend(places.reads[leaf.number])
            leaves.append((leaf.number, slot))
            self.last_recipe[slot] = number
        step.leaves = tuple(leaves)
        for state, node in places.states.items():
            assert node.device is not None
            self.states.add(state)
            self.calls[node.call].state = (state, node.device)
        step.states = tuple(places.states)

    def _check(self, number: int) -> None:
        step = self.calls[number]
        if not step.is_checked:
            step.is_checked = True
            constants = dict(self.recording.log.calls[number].constants)
            del constants[LENGTH,]  # of (args, kwargs): always two
            step.keywords = constants.pop((1, KEYS))
            step.constants = [(where_of(path), constant) for path, constant in constants.items()]

    def _must_be(self, call: int, path: Path, origin: Origin) -> None:
        if origin not in self.registers:
            register = self.registers[origin] = len(self.registers)
            self.calls[origin[0]].results.append((origin[1], register))
        register = self.registers[origin]
        if (call, path) not in self.seen:
            self.seen.add((call, path))
            self.calls[call].same.append((where_of(path), register))
        self.last_reader[register] = max(call, self.last_reader.get(register, -1))

    def _fill(self, leaf: Value, reads: list[tuple[int, Path, Layout]]) -> None:
        """Whoever has the leaf first puts it into its slot; whoever reads it later checks that it is the same."""
        slot = self.slots[leaf.number]
        is_filled = False
        if leaf.saved_by is not None:
            pack = self.packs[leaf.saved_by]
            if not reads or pack.call <= reads[0][0]:
                pack.slot, is_filled = slot, True
        for call, path, layout in reads:
            if (call, path) not in self.seen:
                self.seen.add((call, path))
                step = self.calls[call]
                first = step.copied if leaf.is_gathered else step.captured
                (step.again if is_filled else first).append((where_of(path), slot, layout))
                is_filled = True
