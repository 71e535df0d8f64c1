"""One checkpoint from many ranks: each writes its files, and the first gives it its name when all are on disk.

What they tell each other goes over their board, since this runs in a thread beside the steps and their collectives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from megaselect.distributed.board import Board, LostRank
from megaselect.distributed.ranks import Ranks
from megaselect.training.checkpoint_files import (
    Rows,
    abandon_checkpoint,
    begin_checkpoint,
    finish_checkpoint,
    write_checkpoint,
    write_files,
)
from megaselect.training.checkpoint_records import FileRecord, SavedState
from megaselect.training.disk_errors import reason_of


class WrittenPart(NamedTuple):
    """Of a checkpoint, by file: tensors by name, and which rows those are that are parts."""

    tensors: Mapping[str, dict[str, Tensor]]
    rows: Mapping[str, Rows]


TakePart = Callable[[], WrittenPart]

LAST_SECONDS = 10.0  # for a save in flight when the run has failed: it may be complete but for its name


class SharedWriter:
    """Writes a run's checkpoints, one after the other, on every rank. ready: see write_checkpoint; the first rank's."""

    def __init__(self, ranks: Ranks, ready: Callable[[], None]) -> None:
        self._ranks, self._ready = ranks, ready
        self._number = 0
        self._deadline: float | None = None

    def give_up_soon(self) -> None:
        """Another rank may be gone: wait for none for long."""
        self._deadline = time.monotonic() + LAST_SECONDS

    def write(self, home: Path, take_part: TakePart, saved: SavedState) -> None:
        """Bring `home` to disk. Raises OSError, on the first rank for all of them, and LostRank where another is gone.

        take_part: what this rank writes; it may raise OSError, of which the others hear too.
        """
        board = self._ranks.board
        if board is None:
            write_checkpoint(home, take_part().tensors, saved, self._ready)
            return
        self._number += 1
        try:
            if self._ranks.is_first:
                self._write_first(board, home, take_part, saved)
            else:
                self._write_other(board, home, take_part)
        except dist.DistError as error:
            raise LostRank(str(error)) from error

    def _write_first(self, board: Board, home: Path, take_part: TakePart, saved: SavedState) -> None:
        try:
            begin_checkpoint(home)
        except OSError:
            board.post(self._key("begun"), False)
            raise
        try:
            board.post(self._key("begun"), True)
            # Of all ranks, whatever the first of them says: as long as one writes, nothing can be removed for good.
            told = [self._write_own(home, take_part), *(self._told(board, rank) for rank in range(1, self._ranks.size))]
            board.remove(self._key("begun"))
            finish_checkpoint(home, _files_of(told), saved, self._ready)
        finally:
            abandon_checkpoint(home)

    def _write_other(self, board: Board, home: Path, take_part: TakePart) -> None:
        if board.read(self._key("begun"), lambda: self._goes_on(0)):  # else the first rank tells why not
            board.post(self._key(f"files/{self._ranks.rank}"), self._write_own(home, take_part))

    def _write_own(self, home: Path, take_part: TakePart) -> dict[str, Any]:
        """What this rank tells: a record for each file, or under "error" what was in the way."""
        try:
            part = take_part()
            files = write_files(home, part.tensors, part.rows)
        except OSError as error:
            reason = f"{reason_of(error)} on rank {self._ranks.rank}"
            return {"error": [error.errno or 0, reason, str(error.filename or home)]}
        return {name: record.model_dump_json() for name, record in files.items()}

    def _told(self, board: Board, rank: int) -> dict[str, Any]:
        """What another rank tells."""
        key = self._key(f"files/{rank}")
        told: dict[str, Any] = board.read(key, lambda: self._goes_on(rank))
        board.remove(key)
        return told

    def _goes_on(self, rank: int) -> bool:
        """Whether it makes sense to wait for that rank."""
        return (self._deadline is None or time.monotonic() < self._deadline) and not self._ranks.has_ended(rank)

    def _key(self, name: str) -> str:
        return f"save/{self._number}/{name}"


def _files_of(told: list[dict[str, Any]]) -> dict[str, FileRecord]:
    """What all ranks have written. Raises OSError where one of them could not."""
    for error in (each["error"] for each in told if "error" in each):
        raise OSError(*error)
    return {name: FileRecord.model_validate_json(record) for each in told for name, record in each.items()}
