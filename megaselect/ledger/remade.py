"""What the ledger is told of tensors that are made again in backward one by one, and not by regions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import CodeType, FunctionType
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., object])
SECOND_RUNS: set[CodeType] = set()


def second_run(function: Function) -> Function:
    """Operators that the function calls in backward are forward's, which run again."""
    assert isinstance(function, FunctionType)
    SECOND_RUNS.add(function.__code__)
    return function


@runtime_checkable
class Remade(Protocol):
    """What a saved-tensor hook keeps in place of a tensor that it will make again."""

    def read_tensors(self) -> Iterable[Tensor]:
        """What it keeps to make it of, parameters left out."""

    def random_states(self) -> Iterable[Tensor]:
        """Those that operators draw from when it is made."""
