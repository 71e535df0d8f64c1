"""What a recording is made of: contents of storages, and the operators that made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaselect.compatibility import is_made_of_tensors, is_transformed
from megaselect.recomputation.tape.operators import ALLOCATIONS, operator

Place = tuple[str, str, int]


class Layout(NamedTuple):
    """How a tensor reads its storage."""

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: Any  # an int; torch has a second type for what a compiler does not know yet

    def of(self, base: Tensor) -> Tensor:
        """The tensor of this layout over the storage of `base`."""
        if layout_of(base) == self:
            return base
        if base.dtype != self.dtype:
            base = whole_storage(base).view(self.dtype)
        return torch.as_strided(base, self.size, self.stride, self.offset)


def layout_of(tensor: Tensor) -> Layout:
    """How `tensor` reads its storage."""
    return Layout(tensor.dtype, tensor.size(), tensor.stride(), tensor.storage_offset())


def whole_storage(tensor: Tensor) -> Tensor:
    """All elements of the storage behind `tensor`, in one dimension."""
    count = tensor.untyped_storage().nbytes() // tensor.element_size()
    return torch.as_strided(tensor, (count,), (1,), 0)


class Leaf:
    """A tensor that recipes read. `version`: how often it had been changed in place when they were written."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor, version: int) -> None:
        self.tensor, self.version = tensor, version


@dataclass(eq=False, slots=True)
class Value:
    """The content of a storage at one version. Without a node, only `leaf` has it.

    number: its own in a recording. is_owned: a parameter or buffer, in memory whether anybody reads it or not.
    is_gathered: a parameter that is only there while its module runs, of which `leaf` has a copy.
    is_saved: its bytes are counted among what is saved for backward. changed: written into after recipes read it.
    in_recipe: a recipe makes it again. saved_by: number of the first request of autograd's that saved it.
    """

    number: int
    nbytes: int
    node: Node | None = None
    index: int = 0
    leaf: Leaf | None = None
    is_owned: bool = False
    is_gathered: bool = False
    is_saved: bool = False
    changed: bool = False
    in_recipe: bool = False
    saved_by: int | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether its content is read from `leaf` alone."""
        return self.node is None or self.is_saved


@dataclass(eq=False, slots=True)
class Node:
    """An operator that can run again. Tensors among the arguments are `Read`s.

    call: the number of the call of torch's interface that it ran in. state: number of the random state it drew from.
    place: see Recording; None for what no pass ran.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: int
    written: bool = False
    state: int | None = None
    device: torch.device | None = None
    place: Place | None = None
    results: dict[int, int] = field(default_factory=dict)  # which result -> number of its value

    def reads(self) -> Iterator[Read]:
        """Every tensor argument."""
        yield from _reads((self.args, self.kwargs))


class Read(NamedTuple):
    """A tensor argument: a value and how it is read. path: of the call's argument it came in by; None: made inside."""

    value: Value
    layout: Layout
    path: tuple[Any, ...] | None = None

    @property
    def is_blank(self) -> bool:
        """Whether it stands for memory that nobody has written into, made for this read alone."""
        return self.value.node is not None and self.value.node.place is None


def is_plain(tensor: Tensor) -> bool:
    """Whether `tensor` has a storage of its own that is read by strides."""
    return not is_transformed(tensor) and tensor.layout is torch.strided and not is_made_of_tensors(tensor)


def _reads(tree: Any) -> Iterator[Read]:
    if isinstance(tree, Read):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from _reads(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from _reads(part)


def with_tensors(tree: Any, tensor_of: Any) -> Any:
    """`tree` with tensor_of(read) for each Read."""
    if isinstance(tree, Read):
        return tensor_of(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(with_tensors(part, tensor_of) for part in tree)
    if isinstance(tree, dict):
        return {key: with_tensors(part, tensor_of) for key, part in tree.items()}
    return tree


def needed(value: Value, visit: Callable[[Value], None] = lambda _: None) -> tuple[list[Value], list[int]]:
    """What a recipe of `value` reads: values that are not made again, and numbers of random states.

    visit is called for each value that is made again.
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


def maker(value: Value) -> str:
    """Name of the operator that made it; "" where none is known."""
    return operator(value.node.func).name if value.node else ""


def is_allocation(value: Value) -> bool:
    """Whether nobody is known to have written into it since it was allocated."""
    return maker(value) in ALLOCATIONS
