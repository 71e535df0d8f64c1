"""Objects that code changes in place, kept as they are: what is in them is put back into the same objects."""

from __future__ import annotations

import array
import dataclasses
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from megaselect.tensor_bits import put_into

PutBack = Callable[[], object]

_ATOMS = {bool, int, float, str, bytes, type(None)}  # there may be very many, and they hold nothing


def reachable(roots: Iterable[Any]) -> Iterator[Any]:
    """Each of `roots` and what is in its containers, each object once, however many hold it."""
    seen: dict[int, Any] = {}  # holds them: an object that is gone leaves its id to others
    pending = list(roots)
    while pending:
        value = pending.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            pending += [part for part in parts_of(value) if type(part) not in _ATOMS]
            yield value


def keep(roots: Iterable[Any]) -> list[PutBack]:
    """What puts back the contents of all that is reachable from `roots`; objects of unknown kinds stay as they are."""
    return [put_back for value in reachable(roots) for put_back in _how_to_put_back(value)]


def parts_of(value: Any) -> list[Any]:
    """What is in a container, or in the attributes of a plain record. Anything else has no parts."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return list(value)
    return list(fields_of(value).values())


def fields_of(value: Any) -> dict[str, Any]:
    """Attributes of a dataclass's instance or of a SimpleNamespace; no other object is known to be only its values."""
    if isinstance(value, nn.Module | type):
        return {}
    if isinstance(value, types.SimpleNamespace):
        return vars(value)
    if not dataclasses.is_dataclass(value):
        return {}
    if hasattr(value, "__dict__"):
        return vars(value)
    names = (field.name for field in dataclasses.fields(value))
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _how_to_put_back(value: Any) -> Iterator[PutBack]:
    numpy = sys.modules.get("numpy")
    if isinstance(value, nn.Parameter):
        return  # a Snapshot keeps those of the model
    if isinstance(value, Tensor):
        yield functools.partial(put_into, value, value.detach().clone())
        if value.is_leaf:
            yield functools.partial(setattr, value, "grad", value.grad)
    elif isinstance(value, dict):
        yield functools.partial(_refill, value, dict(value), value.update)
    elif isinstance(value, list | bytearray | array.array):
        yield functools.partial(_refill_slice, value, value[:])
    elif isinstance(value, deque):
        yield functools.partial(_refill, value, list(value), value.extend)
    elif isinstance(value, set):
        yield functools.partial(_refill, value, list(value), value.update)
    elif numpy and isinstance(value, numpy.ndarray):
        yield functools.partial(_refill_array, value, value.copy())
    elif fields_of(value):
        yield functools.partial(_refill_fields, value, dict(fields_of(value)))


def _refill(container: Any, before: Any, add: Callable[[Any], None]) -> None:
    """A dictionary, set or deque. One that has not changed is left alone: some dictionaries refuse a change."""
    if not _same_objects(_flat(container), _flat(before)):
        container.clear()
        add(before)


def _flat(container: Any) -> list[Any]:
    """Keys and values, or elements."""
    return [*container, *container.values()] if isinstance(container, dict) else list(container)


def _same_objects(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(map(lambda got, want: got is want, one, other))


def _refill_slice(sequence: Any, before: Any) -> None:
    if not _same_objects(list(sequence), list(before)):
        sequence[:] = before


def _refill_array(values: Any, before: Any) -> None:
    """NumPy's, by its bits."""
    if values.shape != before.shape:
        values.resize(before.shape, refcheck=False)
    if values.tobytes() != before.tobytes():
        values[...] = before


def _refill_fields(record: Any, before: dict[str, Any]) -> None:
    """Past a __setattr__ that refuses, as that of a frozen dataclass."""
    for name in fields_of(record).keys() - before.keys():
        object.__delattr__(record, name)
    for name, value in before.items():
        if getattr(record, name, None) is not value:
            object.__setattr__(record, name, value)
