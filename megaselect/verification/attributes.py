"""What modules keep besides parameters and buffers: counters, running values, caches, lists of router losses.

A second run of a module's code changes them a second time. They are put back before each run of a step, and held
against each other after it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
# What every module has: parameters, buffers, hooks. Whether it trains is a state that forward code can change.
_OF_EVERY_MODULE = nn.Module().__dict__.keys() - {"training"}


class Attributes:
    """Plain values, tensors and containers of these on the modules of a model, as they were when it was taken."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(module.__dict__, _copied(_own(module))) for module in model.modules()]

    def put_back(self) -> None:
        """Into the same containers and tensors, which others may hold; what was added since goes."""
        for present, kept in self._kept:
            for name in _own_names(present) - kept.keys():
                if _is_state(present[name]):
                    del present[name]
            for name, value in kept.items():
                present[name] = value.put_back()


def values_on(model: nn.Module) -> dict[str, Tensor | None]:
    """`layers.0.counter` -> its value: each number and tensor in the attributes of the model's modules."""
    found: dict[str, Tensor | None] = {}
    for path, module in model.named_modules():
        for name, value in _own(module).items():
            found.update(_values(".".join(filter(None, (path, name))), value))
    return found


def _own_names(attributes: dict[str, Any]) -> set[str]:
    return {name for name in attributes if name not in _OF_EVERY_MODULE}


def _own(module: nn.Module) -> dict[str, Any]:
    return {name: module.__dict__[name] for name in _own_names(module.__dict__) if _is_state(module.__dict__[name])}


def _is_state(value: Any) -> bool:
    """Plain values, tensors, and containers of these; a list of modules or functions is none."""
    if isinstance(value, dict):
        return all(map(_is_state, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_state, value))
    return isinstance(value, (*_PLAIN, Tensor)) and not isinstance(value, nn.Parameter)


def _copied(attributes: dict[str, Any]) -> dict[str, _Kept]:
    return {name: _Kept(value) for name, value in attributes.items()}


class _Kept:
    """A value, and what was in it."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.inside: Any = None
        if isinstance(value, Tensor):
            self.inside = value.detach().clone()
        elif isinstance(value, dict):
            self.inside = {key: _Kept(part) for key, part in value.items()}
        elif isinstance(value, list):
            self.inside = [_Kept(part) for part in value]
        elif isinstance(value, set):
            self.inside = set(value)

    def put_back(self) -> Any:
        """The value, with what was in it."""
        if isinstance(self.value, Tensor):
            if not torch.equal(self.value.detach(), self.inside):
                self.value.data.copy_(self.inside)
        elif isinstance(self.value, dict):
            parts = {key: part.put_back() for key, part in self.inside.items()}
            self.value.clear()
            self.value.update(parts)
        elif isinstance(self.value, list):
            self.value[:] = [part.put_back() for part in self.inside]
        elif isinstance(self.value, set):
            self.value.clear()
            self.value.update(self.inside)
        return self.value


def _values(path: str, value: Any) -> Iterator[tuple[str, Tensor | None]]:
    if isinstance(value, Tensor):
        yield path, value.detach().clone()
    elif isinstance(value, bool | int | float):
        yield path, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, dict):
        yield f"len({path})", torch.tensor(len(value))
        for key, part in value.items():
            yield from _values(f"{path}[{key!r}]", part)
    elif isinstance(value, list | tuple):
        yield f"len({path})", torch.tensor(len(value))
        for index, part in enumerate(value):
            yield from _values(f"{path}[{index}]", part)
