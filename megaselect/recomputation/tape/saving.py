"""What autograd asks to save while a forward pass is recorded: the tensor, or a recipe that was proved.

The answer is given at once, from what is known by then: a recipe where what it reads is saved already or is smaller. A
recipe is proved when it is written: it is run, and must give the very bits. A kernel that writes past torch's
dispatcher is found so, and its tensor is saved and named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaselect.compatibility import is_fake, version_of
from megaselect.recomputation.tape.call_log import CallLog
from megaselect.recomputation.tape.contents import Contents
from megaselect.recomputation.tape.replay import Frame, Recipe, Saved, make
from megaselect.recomputation.tape.values import (
    Layout,
    Leaf,
    Value,
    is_allocation,
    is_plain,
    layout_of,
    maker,
    needed,
    whole_storage,
)
from megaselect.tensor_bits import same_bits


@dataclass(eq=False)
class Packed:
    """One request of autograd's to save a tensor. value: what a recipe was written for; None where it is saved."""

    call: int  # how many calls had begun
    tensor_layout: Layout | None
    version: int
    value: Value | None = None
    saved: Value | None = None


class Saving:
    """Of one forward pass.

    is_exact: what could be made again is, whatever that needs; else only what costs fewer bytes than it saves.
    has_long_recipes: recipes may reach back to the beginning of a layer. packs: the requests so far. unproved: operator
    -> how many of its results were not what it gives again. states: random states, by their numbers in nodes.
    """

    def __init__(self, contents: Contents, log: CallLog, *, has_long_recipes: bool, is_exact: bool) -> None:
        self._contents, self._log, self._is_exact = contents, log, is_exact
        self.frame = Frame()
        self.packs: list[Packed] = []
        self.unproved: dict[str, int] = {}
        self.states: list[Tensor] = []
        self.is_busy = False  # what runs is the recorder's own
        self._proofs = Frame(keeps_all=has_long_recipes)  # long ones share what they make, up to the next layer

    def pack(self, tensor: Tensor) -> Saved | Recipe:
        """The saved-tensor hook of forward."""
        with self._busy():
            return self._pack(tensor)

    def _pack(self, tensor: Tensor) -> Saved | Recipe:
        packed = Packed(len(self._log.calls), None, version_of(tensor))
        self.packs.append(packed)
        if not is_plain(tensor) or self._contents.is_owned(tensor) or self._is_gathered(tensor):
            return Saved(tensor)
        packed.tensor_layout = layout_of(tensor)
        value = self._contents.value_or_new(tensor)
        if not value.is_leaf and self.is_worth_it(value) and self._is_proved(value, tensor):
            packed.value = value
            return self._recipe(value, tensor)
        return self._saved(value, tensor, packed)

    def _is_gathered(self, tensor: Tensor) -> bool:
        """Whether it is over a parameter that is not the model's own: no recipe may count on it."""
        return isinstance(self._log.argument_of(tensor)[1], nn.Parameter)

    def _saved(self, value: Value, tensor: Tensor, packed: Packed) -> Saved:
        kept = Saved(tensor)
        packed.saved = value
        if value.saved_by is None:
            value.saved_by = len(self.packs) - 1
        self._save(value, kept.tensor)
        return kept

    @staticmethod
    def _save(value: Value, tensor: Tensor) -> None:
        """Recipes read it from here on. How it was made is forgotten, so that what it was made of can be let go."""
        if value.leaf is None:
            value.leaf = Leaf(tensor, version_of(tensor))
        if not value.in_recipe:
            value.node = None
        value.is_saved = not value.is_owned

    def layer_begins(self, tensors: list[Tensor]) -> None:
        """What comes into a layer of `full`: saved, and nothing before it runs again."""
        self._proofs = Frame(keeps_all=self._proofs.keeps_all)
        with self._busy():
            for tensor in tensors:
                if is_plain(tensor) and tensor.requires_grad and not self._contents.is_owned(tensor):
                    value = self._contents.value_or_new(tensor)
                    if not value.is_saved:
                        self._save(value, _detached(tensor))

    def before_change(self, value: Value, target: Tensor, is_told: bool) -> None:
        """Recipes read what is about to be written over: they get a copy.

        is_told: whether autograd is, by the version: then what it asked for is no more.
        """
        value.changed = True
        if is_told:
            self.frame.changed.add(value.number)
        if value.leaf is not None:
            with self._busy():
                value.leaf.tensor = whole_storage(target.detach()).clone()
            value.leaf.version = version_of(value.leaf.tensor)
            value.is_owned = False

    def is_worth_it(self, value: Value) -> bool:
        """Whether what the recipe would read and is not saved yet is smaller than the value."""
        leaves, states = needed(value)
        if any(leaf.leaf is None for leaf in leaves) or is_allocation(value):
            return False
        if self._is_exact:
            return True
        dear = sum(leaf.nbytes for leaf in leaves if not leaf.is_saved and not leaf.is_owned)
        return dear + sum(self.states[state].nbytes for state in states) < value.nbytes

    def _recipe(self, value: Value, tensor: Tensor) -> Recipe:
        leaves, states = needed(value, _use)
        kept = _leaves_of(leaves)
        for leaf in leaves:
            tensor_read = kept[leaf.number]
            if tensor_read.tensor.requires_grad and not leaf.is_owned:
                tensor_read.tensor = _detached(tensor_read.tensor)
            leaf.is_saved = not leaf.is_owned
        return Recipe(self.frame, value, layout_of(tensor), kept, self._states_of(states), tensor)

    def _is_proved(self, value: Value, tensor: Tensor) -> bool:
        """Whether the recipe gives these bits, now."""
        if is_fake(tensor):
            return True
        leaves, states = needed(value)
        with torch.no_grad():
            again = make(value, self._proofs, _leaves_of(leaves), self._states_of(states))
            is_same = same_bits(layout_of(tensor).of(again), tensor)
        if not is_same:
            name = maker(value)
            self.unproved[name] = self.unproved.get(name, 0) + 1
        return is_same

    def _states_of(self, numbers: list[int]) -> dict[int, Tensor]:
        return {number: self.states[number] for number in numbers}

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        outside, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = outside

    def forget_tensors(self) -> None:
        """What recipes need they hold themselves."""
        self._proofs = Frame()
        for packed in self.packs:
            for value in (packed.value, packed.saved):
                if value is not None:
                    _let_go(value)
        self.states.clear()


def _leaves_of(values: list[Value]) -> dict[int, Leaf]:
    return {value.number: value.leaf for value in values if value.leaf is not None}


def _use(value: Value) -> None:
    value.in_recipe = True


def _detached(tensor: Tensor) -> Tensor:
    """Without its history: a result and its graph would else hold each other for ever."""
    return tensor.detach() if tensor.requires_grad else tensor


def _let_go(value: Value) -> None:
    todo, seen = [value], set()
    while todo:
        one = todo.pop()
        if one.number not in seen:
            seen.add(one.number)
            one.leaf = None
            if one.node is not None:
                todo += [read.value for read in one.node.reads()]
