"""The ranks that train one model together, and what they tell each other. One process alone is a rank of one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from megaselect.distributed.board import Board
from megaselect.distributed.collectives import all_gather
from megaselect.distributed.members import Member

T = TypeVar("T")


class Ranks:
    """One process alone."""

    size, rank = 1, 0
    board: Board | None = None
    lasting: Board | None = None

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all of them."""
        return self.rank == 0

    def gather(self, tensor: Tensor) -> Tensor:
        """[size, ...]: the tensor of each rank, all of one shape and dtype, on the same device."""
        return tensor.unsqueeze(0)

    def gather_values(self, value: T) -> list[T]:
        """The value of each rank: what JSON can hold."""
        return [value]

    def from_first(self, value: T) -> T:
        """The first rank's value: what JSON can hold."""
        return value

    def has_ended(self, rank: int) -> bool:
        """Whether another rank's process is known to have ended."""
        return False

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank goes inside, and the others when it has left."""
        if not self.is_first:
            self.from_first(None)
        yield
        if self.is_first:
            self.from_first(None)


class ProcessGroupRanks(Ranks):
    """The ranks of torch.distributed's default process group, which must be there.

    members: where each of them lives. board: they share it. lasting: what their next start will find too; None where
    nothing outlives them.
    """

    def __init__(
        self, members: Sequence[Member] = (), board: Board | None = None, lasting: Board | None = None
    ) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()
        self.board, self.lasting, self._members = board, lasting, members

    def has_ended(self, rank: int) -> bool:
        """See Ranks.has_ended."""
        return self._members[rank].is_here_and_gone

    def gather(self, tensor: Tensor) -> Tensor:
        """See Ranks.gather."""
        return all_gather(tensor)

    def gather_values(self, value: T) -> list[T]:
        """See Ranks.gather_values. JSON, not a pickle: what comes from elsewhere runs nothing here."""
        text = json.dumps(value).encode()
        length = int(self.gather(torch.tensor([len(text)])).max())
        own = torch.zeros(length, dtype=torch.uint8)
        own[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return [_value_of(row) for row in self.gather(own)]

    def from_first(self, value: T) -> T:
        """See Ranks.from_first."""
        return self.gather_values(value if self.is_first else None)[0]  # type: ignore[return-value]


def _value_of(row: Tensor) -> Any:
    """JSON has no zero bytes: those fill up."""
    return json.loads(bytes(row.tolist()).rstrip(b"\0"))
