"""What the ledger is told of tensors that are made again in backward one by one, and not by regions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Remade(Protocol):
    """What a saved-tensor hook keeps in place of a tensor that it will make again."""

    def read_tensors(self) -> Iterable[Tensor]:
        """What it keeps to make it of, parameters left out."""
