"""Tensors in nested tuples, lists, dictionaries and dataclasses: arguments and outputs of anybody's modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
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
    """`tree` with function(tensor) for each tensor in its tuples, lists and dictionaries; the rest stays itself."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        mapped = {key: map_tensors(function, part) for key, part in tree.items()}
        return mapped if type(tree) is dict else type(tree)(mapped)
    if isinstance(tree, tuple | list):
        parts = [map_tensors(function, part) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree
