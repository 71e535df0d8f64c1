"""Backward's side: making again what was not saved, each operator once."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from megaselect.compatibility import version_of
from megaselect.ledger.remade import second_run
from megaselect.recomputation.tape.random_states import drawing_from
from megaselect.recomputation.tape.values import Layout, Leaf, Node, Read, Value, whole_storage, with_tensors

Made = dict[int, Tensor]


class Frame:
    """What the recipes of one forward pass share: results that more than one of them needs, while they need them.

    uses: number of a value -> how many recipes and operators will still ask for it. changed: numbers of the values
    that are written into after autograd asked for them. keeps_all: whether every result stays, since it is not known
    who will ask.
    """

    def __init__(
        self, uses: dict[int, int] | None = None, changed: set[int] | None = None, keeps_all: bool = False
    ) -> None:
        self.uses: dict[int, int] = dict(uses or {})
        self.keeps_all = keeps_all
        self.made: Made = {}
        self._versions: dict[int, int] = {}  # of what is in `made`
        self.changed: set[int] = set() if changed is None else changed

    def file(self, number: int, tensor: Tensor) -> None:
        """For whoever asks next."""
        self.made[number], self._versions[number] = tensor, version_of(tensor)

    def has(self, number: int) -> bool:
        """Whether it is there as it was made: backward of somebody's own may have written into what it was given."""
        if number in self.made and version_of(self.made[number]) != self._versions[number]:
            del self.made[number]
        return number in self.made

    def used(self, number: int, made: Made) -> None:
        """One use less; after the last one the result is let go."""
        left = self.uses.get(number, 0) - 1
        self.uses[number] = left
        if left <= 0:
            made.pop(number, None)
            if not self.keeps_all:
                self.made.pop(number, None)


class Saved:
    """A tensor that is kept as it is: autograd compares no versions of what hooks keep."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach() if tensor.requires_grad else tensor
        self.version = version_of(tensor)

    def read_tensors(self) -> list[Tensor]:
        """The tensor alone."""
        return [self.tensor]

    def random_states(self) -> list[Tensor]:
        """None: nothing is made again."""
        return []

    def make(self) -> Tensor:
        """The tensor. Raises RuntimeError, as autograd does, where it was changed in place."""
        if version_of(self.tensor) != self.version:
            raise changed_in_place(self.tensor.dtype, self.tensor.size())
        return self.tensor


class Recipe:
    """What is kept in place of a tensor that backward asks for: what makes it again, of what.

    leaves: number of a value -> its tensor. states: number of a random state -> the state.
    """

    __slots__ = ("__weakref__", "alive", "frame", "layout", "leaves", "states", "value", "version")

    def __init__(
        self,
        frame: Frame,
        value: Value,
        layout: Layout,
        leaves: dict[int, Leaf],
        states: dict[int, Tensor],
        tensor: Tensor,
    ) -> None:
        self.frame, self.value, self.layout, self.leaves, self.states = frame, value, layout, leaves, states
        self.alive, self.version = weakref.ref(tensor), version_of(tensor)

    def read_tensors(self) -> list[Tensor]:
        """What it is made of."""
        return [leaf.tensor for leaf in self.leaves.values()]

    def random_states(self) -> list[Tensor]:
        """Those that operators drew from."""
        return list(self.states.values())

    def make(self) -> Tensor:
        """The tensor. Raises RuntimeError, as autograd does, where it or what it is made of was changed in place."""
        self._check_unchanged()
        base = make(self.value, self.frame, self.leaves, self.states)
        self.frame.used(self.value.number, {})
        return self.layout.of(base)

    def _check_unchanged(self) -> None:
        tensor = self.alive()
        is_changed = tensor is not None and version_of(tensor) != self.version
        if is_changed or self.value.number in self.frame.changed:
            raise changed_in_place(self.layout.dtype, self.layout.size)


def make(value: Value, frame: Frame, leaves: dict[int, Leaf], states: dict[int, Tensor]) -> Tensor:
    """A tensor over the storage of `value`, made from `leaves`."""
    if frame.has(value.number):
        return frame.made[value.number]
    autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if torch.is_grad_enabled() or autocast:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return _make(value, frame, leaves, states)
    return _make(value, frame, leaves, states)


def _make(value: Value, frame: Frame, leaves: dict[int, Leaf], states: dict[int, Tensor]) -> Tensor:
    made: Made = {}
    todo = [value]
    while todo:
        if _is_there(todo[-1], made, frame, leaves):  # first of all: what it was made of may be gone again
            todo.pop()
            continue
        node = todo[-1].node
        assert node is not None
        missing = [read.value for read in node.reads() if not _is_there(read.value, made, frame, leaves)]
        if missing:
            todo += missing
        else:
            _run(node, made, frame, leaves, states)
    result = made.get(value.number)
    return frame.made[value.number] if result is None else result


def _is_there(value: Value, made: Made, frame: Frame, leaves: dict[int, Leaf]) -> bool:
    return value.number in leaves or value.number in made or frame.has(value.number)


@second_run
def _run(node: Node, made: Made, frame: Frame, leaves: dict[int, Leaf], states: dict[int, Tensor]) -> None:
    """Run the operator again and file its results."""

    def tensor_of(read: Read) -> Tensor:
        number = read.value.number
        leaf = leaves.get(number)
        if leaf is None:
            return read.layout.of(made[number] if number in made else frame.made[number])
        if version_of(leaf.tensor) != leaf.version:
            raise changed_in_place(read.layout.dtype, read.layout.size)
        return read.layout.of(leaf.tensor)

    args, kwargs = with_tensors(node.args, tensor_of), with_tensors(node.kwargs, tensor_of)
    if node.written:
        base = args[0] if node.args[0].is_blank else whole_storage(args[0]).clone()
        args = (node.args[0].layout.of(base), *args[1:])
    if node.state is None:
        results = node.func(*args, **kwargs)
    else:
        assert node.device is not None
        with drawing_from(states[node.state], node.device):
            results = node.func(*args, **kwargs)
    if node.written:
        results = base
    results = results if isinstance(results, tuple | list) else (results,)
    for index, number in node.results.items():
        made[number] = results[index]
        if frame.keeps_all or frame.uses.get(number, 0) > 0:
            frame.file(number, results[index])
    for read in node.reads():
        if read.value.number not in leaves:
            frame.used(read.value.number, made)


def changed_in_place(dtype: torch.dtype, size: torch.Size) -> RuntimeError:
    """Autograd's own error, of its type and beginning, so that whoever looks for it finds it."""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor of "
        f"shape {list(size)} and {dtype}, or what it would be made of again"
    )


def unpack(packed: Any) -> Tensor:
    """The saved-tensor hook of backward."""
    made: Tensor = packed.make()
    return made
