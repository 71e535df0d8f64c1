"""Tensors in nested tuples, lists, dictionaries and dataclasses: arguments and outputs of anybody's modules."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor of `tree`, in order; what is neither a container nor a tensor is passed over."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for part in tree.values():
            yield from tensors_in(part)
    elif isinstance(tree, tuple | list | set | frozenset):
        for part in tree:
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        for part in dataclasses.fields(tree):
            yield from tensors_in(getattr(tree, part.name, None))


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """`tree` with function(tensor) for each tensor that tensors_in finds, in containers anew; the rest stays itself."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return _mapping_like(tree, {key: map_tensors(function, part) for key, part in tree.items()})
    if isinstance(tree, tuple | list | set | frozenset):
        parts = [map_tensors(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return _dataclass_like(tree, function)
    return tree


def _mapping_like(tree: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    """Of the kind of `tree`, which may hold more than its items, such as a default."""
    kind: Any = type(tree)  # what a mapping is made from, no type says
    if kind is dict:
        return mapped
    if not isinstance(tree, MutableMapping):
        return kind(mapped)
    alike = copy.copy(tree)
    for key, part in mapped.items():
        alike[key] = part
    return alike


def _dataclass_like(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """Without its __init__, which may do more than to set the fields, and past a frozen one's refusal."""
    alike = copy.copy(tree)
    for part in dataclasses.fields(tree):
        if hasattr(tree, part.name):
            object.__setattr__(alike, part.name, map_tensors(function, getattr(tree, part.name)))
    return alike
