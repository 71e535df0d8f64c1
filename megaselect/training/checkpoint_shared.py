"""One checkpoint from many ranks: each writes its files, and the first gives it its name when all are on disk.

What they tell each other goes over their board, since this runs in a thread beside the steps and their collectives.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from megaselect.distributed.board import Board
from megaselect.distributed.ranks import Ranks
from megaselect.errors import RankError
from megaselect.training.checkpoint_files import (
    Rows,
    abandon_checkpoint,
    begin_checkpoint,
    finish_checkpoint,
    write_checkpoint,
    write_files,
)
from megaselect.training.checkpoint_records import FileRecord, SavedState

LAST_SECONDS = 30.0  # for a save in flight when the run has failed: it may be complete but for its name


class SharedWriter:
    """Writes a run's checkpoints, one after the other, on every rank. ready: see write_checkpoint; the first rank's."""

    def __init__(self, ranks: Ranks, ready: Callable[[], None]) -> None:
        self._ranks, self._ready = ranks, ready
        self._number = 0
        self._deadline: float | None = None

    def give_up_soon(self) -> None:
        """Another rank may be gone: wait for none for long."""
        self._deadline = time.monotonic() + LAST_SECONDS

    def write(
        self,
        home: Path,
        tensors: Mapping[str, dict[str, Tensor]],
        rows: Mapping[str, Rows],
        saved: SavedState,
    ) -> None:
        """Bring `home` to disk: tensors and rows by file, of this rank. Raises OSError, on the first rank for all."""
        board = self._ranks.board
        if board is None:
            write_checkpoint(home, tensors, saved, self._ready)
            return
        self._number += 1
        try:
            if self._ranks.is_first:
                self._write_first(board, home, tensors, rows, saved)
            else:
                self._write_other(board, home, tensors, rows)
        except (RankError, dist.DistError) as error:
            raise OSError(errno.EIO, f"another rank did not write its part ({error})", str(home)) from error

    def _write_first(self, board: Board, home: Path, tensors: Any, rows: Any, saved: SavedState) -> None:
        try:
            begin_checkpoint(home)
            board.post(self._key("begun"), True)
            files = write_files(home, tensors, rows)
            for rank in range(1, self._ranks.size):
                files |= self._files_of(board, rank)
            finish_checkpoint(home, files, saved, self._ready)
        except OSError as error:
            board.post(self._key("begun"), False)
            raise error
        finally:
            abandon_checkpoint(home)

    def _files_of(self, board: Board, rank: int) -> dict[str, FileRecord]:
        """What another rank has written. Raises OSError where it could not."""
        key = self._key(f"files/{rank}")
        told = board.read(key, lambda: self._goes_on(rank))
        board.remove(key)
        if "error" in told:
            raise OSError(*told["error"])
        return {name: FileRecord.model_validate_json(record) for name, record in told.items()}

    def _write_other(self, board: Board, home: Path, tensors: Any, rows: Any) -> None:
        if not board.read(self._key("begun"), lambda: self._goes_on(0)):
            return  # the first rank tells why
        told: dict[str, Any]
        try:
            told = {name: record.model_dump_json() for name, record in write_files(home, tensors, rows).items()}
        except OSError as error:
            told = {"error": [error.errno, f"{error.strerror} on rank {self._ranks.rank}", error.filename]}
        board.post(self._key(f"files/{self._ranks.rank}"), told)

    def _goes_on(self, rank: int) -> bool:
        """Whether it makes sense to wait for that rank."""
        return (self._deadline is None or time.monotonic() < self._deadline) and not self._ranks.has_ended(rank)

    def _key(self, name: str) -> str:
        return f"save/{self._number}/{name}"
