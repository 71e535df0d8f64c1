"""The operators of a forward pass and what autograd saves of them, as a graph that can be planned on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from megaselect.recomputation.tape.recorder import Recording
from megaselect.recomputation.tape.saving import Saving
from megaselect.recomputation.tape.values import Node, Place, Value


@dataclass(frozen=True)
class GraphValue:
    """The content of a storage. maker: place of the operator that can make it again; None: nothing can.

    is_needed: autograd saves it. can_be_saved: a later pass finds it, to save it where autograd does not.
    """

    number: int
    nbytes: int
    maker: Place | None
    is_needed: bool
    can_be_saved: bool


@dataclass(frozen=True)
class GraphOperator:
    """An operator that can run again. reads and makes: numbers of values, parameters left out.

    state_bytes: of the random state that is saved with it. node: what it runs.
    """

    place: Place
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    state_bytes: int
    node: Node = field(compare=False)


@dataclass(frozen=True)
class Graph:
    """values by number, operators by place."""

    values: dict[int, GraphValue]
    operators: dict[Place, GraphOperator]


class _SavingAll(Saving):
    def is_worth_it(self, value: Value) -> bool:
        """Never; and its maker is not forgotten."""
        value.in_recipe = True
        return False


class GraphRecording(Recording):
    """Notes a pass whose tensors have no values, and saves all: what could be made again is read off afterwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, lambda *_: False)
        self.saving = _SavingAll(self.contents, self.log, has_long_recipes=False, is_exact=False)

    def graph(self) -> Graph:
        """Everything that what autograd saves is made of."""
        saved = [packed.saved for packed in self.saving.packs if packed.saved and not packed.saved.is_owned]
        needed = {id(value): value for value in saved}
        values: dict[int, GraphValue] = {}
        operators: dict[Place, GraphOperator] = {}
        comes_in = self._that_come_in(needed.values())
        for value in _ancestors(needed.values()):
            node = value.node if value.node is not None and value.node.place else None
            maker = node.place if node else None
            is_needed = id(value) in needed
            can_be_saved = not value.changed and (is_needed or value.number in comes_in)
            values[value.number] = GraphValue(value.number, value.nbytes, maker, is_needed, can_be_saved)
            if node is not None and maker is not None and maker not in operators:
                operators[maker] = self._operator(node, maker)
        return Graph(values, operators)

    def _operator(self, node: Node, place: Place) -> GraphOperator:
        reads = {read.value.number: None for read in node.reads() if _counts(read.value)}
        state = self.saving.states[node.state].nbytes if node.state is not None else 0
        return GraphOperator(place, tuple(reads), tuple(node.results.values()), state, node)

    @staticmethod
    def _that_come_in(needed: Any) -> set[int]:
        """Values that are an argument of some call."""
        found: set[int] = set()
        for value in _ancestors(needed):
            if value.node is not None:
                found |= {read.value.number for read in value.node.reads() if read.path is not None}
        return found


def _counts(value: Value) -> bool:
    """Whether it takes memory that is not there anyway."""
    return not value.is_owned and not (value.node is not None and value.node.place is None)


def _ancestors(values: Any) -> Iterator[Value]:
    seen: set[int] = set()
    todo = list(values)
    while todo:
        value = todo.pop()
        if value.number in seen or not _counts(value):
            continue
        seen.add(value.number)
        yield value
        if value.node is not None:
            todo += [read.value for read in value.node.reads()]
