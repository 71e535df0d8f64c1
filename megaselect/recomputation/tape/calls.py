"""Calls of torch's Python interface, as a recording notes them: what came in, by which path, and from where."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import MethodWrapperType
from typing import Any

import torch
from torch import Tensor

from megaselect.recomputation.tape.values import Layout

Path = tuple[Any, ...]
LENGTH, KEYS, SLICE = object(), object(), object()  # steps of a path that no argument's name can be
METADATA = MethodWrapperType  # the type of tensor.shape's getter and its like: seldom a tensor's maker
SETTER = "__set__"  # the name of what sets tensor.data and its like
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


Where = int | Path  # of a part of (args, kwargs): the place of a positional argument, or a path


def where_of(path: Path) -> Where:
    """The shorter form of a path in (args, kwargs), where it has one: it is found faster."""
    return path[1] if len(path) == 2 and path[0] == 0 and type(path[1]) is int else path


def part_of(given: Any, where: Where) -> Any:
    """The part of given = (args, kwargs) there."""
    return given[0][where] if isinstance(where, int) else at(given, where)


def is_same_constant(one: Any, other: Any) -> bool:
    """Whether two arguments that are no tensors say the same to an operator: 1 and 1.0 do not."""
    if one is other:
        return True
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    if isinstance(one, float | complex):
        return repr(one) == repr(other)  # zero is not minus zero
    try:
        return bool(one == other)
    except Exception:  # somebody's own comparison: not known to be the same
        return False


Autocast = tuple[torch.dtype | None, torch.dtype | None]


def autocast_dtypes() -> Autocast:
    """Into what autocast turns the arguments of products, on CPUs and on GPUs; None: it is off."""
    return (
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None,
    )


@contextlib.contextmanager
def autocast_as(dtypes: Autocast) -> Iterator[None]:
    """Inside, autocast is as it was when `autocast_dtypes` said so."""
    if dtypes == autocast_dtypes():
        yield
        return
    with ExitStack() as stack:
        for device, dtype in zip(AUTOCAST_DEVICES, dtypes, strict=True):
            stack.enter_context(torch.autocast(device, dtype, enabled=dtype is not None))
        yield


Origin = tuple[int, Path]  # number of a call, and which of its results


@dataclass(eq=False)
class Call:
    """One call. autocast: what held when it began. constants: what is no tensor, by path.

    origins: which call's result came in; None: not known. layouts, versions: of the tensors that came in. draws: how
    many operators in it draw random numbers. only_views: whether none made anything.
    is_opaque: what its operators do depends on more than its arguments: on values that were read, or on a graph.
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
    is_opaque: bool = False
