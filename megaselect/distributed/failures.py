"""Which rank failed, and who of the others tells it: one line in all.

The first rank that fails by itself leaves a record in the ranks' store. The others fail soon after, in a collective
that it does not come to; they find the record and keep silent. Where there is none, a rank is gone without a word or
does not answer: then one of those that are left names it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch.distributed as dist

from megaselect.errors import RankError, ToldByAnotherRank

RECORD_SECONDS = 3.0  # that a rank which has failed takes to leave its record
ANSWER_SECONDS = 10.0  # that a rank which is alive takes to notice that another is gone
_PAUSE_SECONDS = 0.05
# Of the transports below torch.distributed, whose errors have no class of their own.
_LOST = ("gloo", "NCCL", "closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "TCPStore")


@dataclass(frozen=True)
class _Member:
    """Where a rank runs."""

    rank: int
    pid: int
    host: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here_and_gone(self) -> bool:
        """Whether it ran on this machine, and has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"  # its launcher has not looked yet


class Failures:
    """What the ranks of one start leave for each other in `store`."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def arrive(self) -> None:
        """Say where this rank runs."""
        self._store.set(self._member_key(self._rank), json.dumps(asdict(_here(self._rank))))

    def raised_for(self, error: Exception) -> Exception:
        """What this rank raises in place of `error`, which has ended its part of the run."""
        try:
            if not lost_a_rank(error):
                return error if self._is_first_to_tell() else ToldByAnotherRank(str(error))
            return self._raised_for_lost(error)
        except (dist.DistError, RuntimeError):  # the store is gone with the process that kept it
            if self._rank <= 1:
                return RankError(
                    "the ranks have lost each other: the process that kept their meeting point has ended; start "
                    "them again, and the run goes on from its last checkpoint"
                )
            return ToldByAnotherRank(str(error))

    def _raised_for_lost(self, error: Exception) -> Exception:
        self._store.set(f"waits/{self._rank}", "")
        if self._has("told", RECORD_SECONDS):
            return ToldByAnotherRank(str(error))
        missing, how = self._missing()
        if not self._is_first_to_tell():
            return ToldByAnotherRank(str(error))
        names = ", ".join(map(str, missing)) or "a rank"
        return RankError(
            f"{names} {how}: start the ranks again, and the run goes on from its last checkpoint (torchrun "
            "--max-restarts does so by itself)"
        )

    def _missing(self) -> tuple[list[_Member], str]:
        """Ranks that are gone, or do not answer, and what to say of them."""
        others = [rank for rank in range(self._size) if rank != self._rank]
        absent = [rank for rank in others if not self._has(self._member_key(rank), 0)]
        if absent:
            return [], f"({', '.join(map(str, absent))} of {self._size}) never came"
        members = [_Member(**json.loads(self._store.get(self._member_key(rank)))) for rank in others]
        gone = [member for member in members if member.is_here_and_gone]
        if gone:
            return gone, "ended without a word, as a process does that is killed"
        deadline = time.monotonic() + ANSWER_SECONDS
        silent = [
            member for member in members if not self._has(f"waits/{member.rank}", max(deadline - time.monotonic(), 0))
        ]
        return silent, "does not answer" if len(silent) == 1 else "do not answer"

    def _is_first_to_tell(self) -> bool:
        return self._store.compare_set("told", "", str(self._rank)) == str(self._rank).encode()

    def _has(self, key: str, seconds: float) -> bool:
        """Whether the key is there, or comes within that time."""
        deadline = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() >= deadline:
                return False
            time.sleep(_PAUSE_SECONDS)
        return True

    @staticmethod
    def _member_key(rank: int) -> str:
        return f"member/{rank}"


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that another rank did not come to a collective."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def _here(rank: int) -> _Member:
    return _Member(rank, os.getpid(), socket.gethostname())
