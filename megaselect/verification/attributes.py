"""What modules keep besides parameters and buffers: counters, running values, caches, lists of router losses.

A second run of a module's code changes them a second time. They are put back before each run of a step, and held
against each other after it.
"""

from __future__ import annotations

import array
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.verification.kept import fields_of, keep

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
# What every module has: parameters, buffers, hooks. Whether it trains is a state that forward code can change.
_OF_EVERY_MODULE = nn.Module().__dict__.keys() - {"training"}
_EXACT = 2**53  # integers below it are themselves in fp64


class Attributes:
    """Attributes of modules, and what is in those of known kinds, as they were when it was taken."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept = [(module.__dict__, _own(module)) for module in modules]
        self._put_back = keep(value for _, kept in self._kept for value in kept.values())

    def put_back(self) -> None:
        """Into the same containers and tensors, which others may hold; what was added since goes."""
        for present, kept in self._kept:
            for name in _own_names(present) - kept.keys():
                if _is_state(present[name]):
                    del present[name]
            present.update(kept)
        for put_back in self._put_back:
            put_back()


def values_on(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """`layers.0.counter` -> its value: each number, text and tensor in the attributes of the model's modules."""
    found: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}
    for path, module in model.named_modules(prefix=prefix):
        for name, value in _own(module).items():
            found.update(_values(".".join(filter(None, (path, name))), value, seen))
    return found


def _own_names(attributes: dict[str, Any]) -> set[str]:
    return {name for name in attributes if name not in _OF_EVERY_MODULE}


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in module.__dict__.items() if name not in _OF_EVERY_MODULE}


def _is_state(value: Any) -> bool:
    """Of a kind that is kept; modules, functions and objects of unknown kinds are none."""
    numpy = sys.modules.get("numpy")
    kinds = (*_PLAIN, *_CONTAINERS, Tensor, bytearray, array.array, *((numpy.ndarray, numpy.generic) if numpy else ()))
    return (isinstance(value, kinds) and not isinstance(value, nn.Parameter)) or bool(fields_of(value))


def _values(path: str, value: Any, seen: dict[int, Any]) -> Iterator[tuple[str, Tensor]]:
    """Each container once, however many hold it; it may hold itself."""
    leaf = _as_tensor(value)
    if leaf is not None:
        yield path, leaf
    elif isinstance(value, _CONTAINERS) or fields_of(value):
        if id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, _CONTAINERS):
            yield f"len({path})", torch.tensor(len(value))
        for name, part in _named_parts(path, value):
            yield from _values(name, part, seen)


def _named_parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{path}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, set | frozenset):
        plain = sorted((part for part in value if isinstance(part, _PLAIN)), key=repr)
        yield from ((f"sorted({path})[{index}]", part) for index, part in enumerate(plain))
    elif isinstance(value, _CONTAINERS):
        yield from ((f"{path}[{index}]", part) for index, part in enumerate(value))
    else:
        yield from ((f"{path}.{name}", part) for name, part in fields_of(value).items())


def _as_tensor(value: Any) -> Tensor | None:
    """Numbers and text as tensors, to be compared as tensors are. None for what is neither."""
    numpy = sys.modules.get("numpy")
    if isinstance(value, Tensor):
        return None if isinstance(value, nn.Parameter) else value.detach().clone()
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < _EXACT):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, complex):
        return torch.tensor([value.real, value.imag], dtype=torch.float64)
    if isinstance(value, int | str):
        return _bytes(str(value).encode(errors="surrogatepass"))
    if isinstance(value, bytes | bytearray | array.array):
        return _bytes(bytes(value))
    if numpy and isinstance(value, numpy.ndarray | numpy.generic):
        return _numbers(numpy.asarray(value))
    return None


def _bytes(text: bytes) -> Tensor:
    return torch.tensor(list(text), dtype=torch.uint8)


def _numbers(values: Any) -> Tensor:
    """Of NumPy's array; of another kind than real numbers, its bytes."""
    if values.dtype.kind in "biuf":
        return torch.tensor(values.astype("float64"))
    return _bytes(values.tobytes())
