"""Which rank failed, and who of the others tells it: one line in all.

The first rank that fails by itself leaves a record in the ranks' store. The others fail soon after, in a collective
that it does not come to; they find the record and keep silent. Where there is none, a rank is gone without a word or
does not answer: then one of those that are left names it.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import asdict

import torch.distributed as dist

from megaselect.distributed.board import LostRank
from megaselect.distributed.members import Member
from megaselect.distributed.together import BeginAgain
from megaselect.errors import MegaselectError, RankError, ToldByAnotherRank

FIRST_TELLS_SECONDS = 1.0  # that the first rank takes to find out what another one has
RECORD_SECONDS = 3.0  # that a rank which has failed takes to leave its record
ANSWER_SECONDS = 10.0  # that a rank which is alive takes to notice that another is gone
_PAUSE_SECONDS = 0.05
# Of the transports below torch.distributed, whose errors have no class of their own.
_LOST = ("gloo", "NCCL", "closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "TCPStore")
FAILED, STOPPED = 2, 128 + signal.SIGTERM  # exit codes of ranks: of those that failed, and those asked to end
_DONE, _STOPPED = b"done", b"stopped"  # how a rank has left
_BEGIN_AGAIN = "begin-again"
_START_AGAIN = "start the ranks again, and the run goes on from its last checkpoint"


class Failures:
    """What the ranks of one start leave for each other in `store`. keeper: the process that keeps the store."""

    def __init__(self, store: dist.Store, rank: int, size: int, keeper: str = "rank 0") -> None:
        self._store, self._rank, self._size, self._keeper = store, rank, size, keeper

    def arrive(self, seconds: float) -> list[Member]:
        """Say where this rank runs, and wait for the others. Raises LostRank.

        Python waits, not the store: there a signal would have to wait too.
        """
        self._store.set(self._member_key(self._rank), json.dumps(asdict(Member.here(self._rank))))
        deadline = time.monotonic() + seconds
        for rank in range(self._size):
            if not self._has(self._member_key(rank), deadline - time.monotonic()):
                raise LostRank
        return [self._member(rank) for rank in range(self._size)]

    def leave(self, how: bytes = _DONE) -> None:
        """Say that this rank ends as it should."""
        self._store.set(self._left_key(self._rank), how.decode())

    def is_done(self, rank: int) -> bool:
        """Whether that rank has ended with its work done."""
        return self._has(self._left_key(rank), 0) and self._store.get(self._left_key(rank)) == _DONE

    def keep_silent(self) -> None:
        """Say that this rank ends because the user asked for it, so that nobody tells it as a failure."""
        self.leave(_STOPPED)
        self._is_first_to_tell()

    def raised_for(self, error: Exception) -> Exception:
        """What this rank raises in place of `error`, which has ended its part of the run."""
        is_lost = lost_a_rank(error)
        try:
            if is_lost:
                return self._raised_for_lost(error)
            return self._raised_for_own(error)
        except (dist.DistError, RuntimeError):  # the store is gone with the process that kept it
            if not is_lost:
                return error
            if self._rank <= 1:
                return RankError(
                    f"the ranks have lost each other: {self._keeper}, where they met, has ended; {_START_AGAIN}"
                )
            return ToldByAnotherRank(str(error))

    def raised_for_stop(self) -> Exception | None:
        """What this rank raises when SIGTERM comes before its training: RankError where another rank is the reason, as
        launchers end all when one has ended; None where all were told to end.
        """
        self.leave(_STOPPED)
        missing, how = self._gone()
        if not missing or self._has("told", 0):
            return None
        return self._told_of(missing, how)

    def _raised_for_own(self, error: Exception) -> Exception:
        """What all ranks find out by themselves, the first one tells."""
        if isinstance(error, BeginAgain) and self._is_first_to_tell(_BEGIN_AGAIN):
            self._store.set(_BEGIN_AGAIN, json.dumps([error.settings, error.reason]))
            return error
        if (self._rank and self._has("told", FIRST_TELLS_SECONDS)) or not self._is_first_to_tell():
            return ToldByAnotherRank(str(error))
        if self._rank and isinstance(error, MegaselectError):
            error.args = (f"{self._member(self._rank)}: {error}",)
        return error

    def _raised_for_lost(self, error: Exception) -> Exception:
        self._store.set(f"waits/{self._rank}", "")
        deadline = time.monotonic() + RECORD_SECONDS
        missing, how = self._gone()
        while not missing and time.monotonic() < deadline:
            if self._has("told", _PAUSE_SECONDS):
                return self._told_by_another(error)
            missing, how = self._gone()
        if not missing:
            missing, how = self._silent()
        return self._told_of(missing or "a rank", how)

    def _told_by_another(self, error: Exception) -> Exception:
        """BeginAgain too, where a rank has said so."""
        if self._store.get("told") == _BEGIN_AGAIN.encode() and self._has(_BEGIN_AGAIN, RECORD_SECONDS):
            return BeginAgain(*json.loads(self._store.get(_BEGIN_AGAIN)))
        return ToldByAnotherRank(str(error))

    def _told_of(self, missing: str, how: str) -> Exception:
        if not self._is_first_to_tell():
            return ToldByAnotherRank(missing)
        return RankError(f"{missing} {how}: {_START_AGAIN} (torchrun --max-restarts does so by itself)")

    def _gone(self) -> tuple[str, str]:
        """Ranks that are gone for sure, and what to say of them."""
        absent = [rank for rank in self._others if not self._has(self._member_key(rank), 0)]
        if absent:
            return f"rank {_listed(absent)} of {self._size}", "never came"
        members = [self._member(rank) for rank in self._others if not self._has(self._left_key(rank), 0)]
        gone = [member for member in members if member.is_here_and_gone]
        return _listed(gone), "ended without a word, as a process does that is killed"

    def _silent(self) -> tuple[str, str]:
        """Ranks that do not say within some seconds that they miss another one, as all do that are alive."""
        deadline = time.monotonic() + ANSWER_SECONDS
        silent = [
            self._member(rank)
            for rank in self._others
            if not self._has(f"waits/{rank}", max(deadline - time.monotonic(), 0))
        ]
        return _listed(silent), "do not answer" if len(silent) > 1 else "does not answer"

    @property
    def _others(self) -> list[int]:
        return [rank for rank in range(self._size) if rank != self._rank]

    def _member(self, rank: int) -> Member:
        return Member(**json.loads(self._store.get(self._member_key(rank))))

    def _is_first_to_tell(self, what: str = "") -> bool:
        """what: in place of which rank tells."""
        told = what or str(self._rank)
        return self._store.compare_set("told", "", told) == told.encode()

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

    @staticmethod
    def _left_key(rank: int) -> str:
        return f"left/{rank}"


def lost_a_rank(error: BaseException) -> bool:
    """Whether an error says that another rank did not come to a collective."""
    if isinstance(error, LostRank | dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)


def _listed(items: list[Member] | list[int]) -> str:
    return ", ".join(map(str, items))
