"""Calls of torch's Python interface, as a recording notes them: what came in, by which path, and from where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor

from megaselect.recomputation.tape.values import Layout

Path = tuple[Any, ...]
LENGTH, KEYS, SLICE = object(), object(), object()  # steps of a path that no argument's name can be
METADATA = MethodWrapperType  # the type of tensor.shape's getter and its like: seldom a tensor's maker
AUTOCAST_DEVICES = ("cpu", "cuda")


def flat(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, part) of everything in nested tuples, lists, dictionaries and slices, their lengths with them."""
    if isinstance(tree, tuple | list):
        yield (*path, LENGTH), len(tree)
        for index, part in enumerate(tree):
            yield from flat(part, (*path, index))
    elif isinstance(tree, dict):
        yield (*path, KEYS), tuple(tree)
        for key, part in tree.items():
            yield from flat(part, (*path, key))
    elif isinstance(tree, slice):
        yield from flat((tree.start, tree.stop, tree.step), (*path, SLICE))
    else:
        yield path, tree


def at(tree: Any, path: Path) -> Any:
    """The part of `tree` at a path of `flat`."""
    for key in path:
        if key is SLICE:
            tree = (tree.start, tree.stop, tree.step)
        elif key is LENGTH:
            return len(tree)
        elif key is KEYS:
            return tuple(tree)
        else:
            tree = tree[key]
    return tree


def is_same_constant(one: Any, other: Any) -> bool:
    """Whether two arguments that are no tensors say the same to an operator: 1 and 1.0 do not."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    try:
        return bool(one == other) or (one != one and other != other)
    except Exception:  # somebody's own comparison: not known to be the same
        return False


Autocast = tuple[torch.dtype | None, torch.dtype | None]


def autocast_dtypes() -> Autocast:
    """Into what autocast turns the arguments of products, on CPUs and on GPUs; None: it is off."""
    on_cpu, on_cuda = map(torch.is_autocast_enabled, AUTOCAST_DEVICES)
    return (
        torch.get_autocast_dtype("cpu") if on_cpu else None,
        torch.get_autocast_dtype("cuda") if on_cuda else None,
    )


Origin = tuple[int, Path]  # number of a call, and which of its results


@dataclass(eq=False)
class Call:
    """One call. autocast: what held when it began. constants: what is no tensor, by path.

    origins: which call's result came in; None: not known. layouts, versions: of the tensors that came in. draws: how
    many operators in it draw random numbers. only_views: whether none made anything.
    """

    number: int
    func: Any
    autocast: Autocast
    constants: dict[Path, Any] = field(default_factory=dict)
    origins: dict[Path, Origin | None] = field(default_factory=dict)
    layouts: dict[Path, Layout] = field(default_factory=dict)
    versions: dict[Path, int] = field(default_factory=dict)
    draws: int = 0
    only_views: bool = True
