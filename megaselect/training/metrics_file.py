"""metrics.jsonl: one object a step, each on a line of its own. No torch."""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from megaselect.errors import CheckpointError
from megaselect.files import publish, sync
from megaselect.training.disk_errors import reason_of, remedy_for
from megaselect.training.events import Metrics

METRICS_NAME = "metrics.jsonl"
_TAIL_BYTES = 2**18  # a line takes under 1 KiB, and more where a blend has many sources


class MetricsFile:
    """Appends a line a step, handed to the system at once: a killed run loses at most the line it was writing.

    Where the disk is full the lines wait in memory, and the run goes on; the file holds whole lines only.
    """

    def __init__(self, path: Path, resumed_step: int, note: Callable[[str], None]) -> None:
        """Lines of steps after resumed_step, which will be done again, are cut off; 0 starts anew.

        note: hears, once, that lines have to wait. Raises CheckpointError.
        """
        self._path, self._note = path, note
        try:
            _cut(path, resumed_step)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another --run-dir") from error
        self._whole_bytes = os.fstat(self._file).st_size
        self._waiting: deque[bytes] = deque()
        self._problem: OSError | None = None

    def write(self, metrics: Metrics) -> None:
        """Append one object."""
        self._waiting.append(json.dumps(metrics).encode() + b"\n")
        told = self._problem is not None
        self._write_waiting()
        if self._problem and not told:
            self._note(
                f"cannot write {self._path}: {reason_of(self._problem)}; the run goes on and its metrics wait in "
                f"memory: {remedy_for(self._problem)}"
            )

    def sync(self) -> None:
        """Return when every line is on disk; may be called from another thread. Raises OSError."""
        problem = self._problem
        if problem is not None:
            raise OSError(problem.errno, problem.strerror, str(self._path))
        os.fsync(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._write_waiting()
        if self._problem:
            self._note(f"{len(self._waiting)} lines of {self._path} are lost: {reason_of(self._problem)}")
        os.close(self._file)

    def _write_waiting(self) -> None:
        """As many lines as there is room for."""
        try:
            self._make_again()
            if self._problem:
                os.ftruncate(self._file, self._whole_bytes)  # the part of a line that there was room for
            while self._waiting:
                self._append(self._waiting[0])
                self._whole_bytes += len(self._waiting.popleft())
            self._problem = None
        except OSError as error:
            self._problem = error
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._whole_bytes)

    def _make_again(self) -> None:
        """Where somebody has removed the file, its name leads to a new one; the lines before are gone with the old."""
        if os.fstat(self._file).st_nlink == 0:
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            self._whole_bytes = os.fstat(file).st_size
            os.dup2(file, self._file)
            os.close(file)

    def _append(self, line: bytes) -> None:
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])


class NoMetrics:
    """In place of a MetricsFile, of a rank for which another one writes."""

    def write(self, metrics: Metrics) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        pass


def _cut(path: Path, last_step: int) -> None:
    """Lines to that step, in a file that is the old one or the new one at any moment."""
    aside = path.with_suffix(".partial")
    with aside.open("wb") as new:
        if path.exists():
            with path.open("rb") as old:
                _copy_steps(old, new, last_step, path)
    publish(aside, path)
    sync(path.parent)


def _copy_steps(old: BinaryIO, new: BinaryIO, last_step: int, path: Path) -> None:
    """Those after last_step need not be whole: only lines before a checkpoint were brought to disk in order."""
    for line in old:
        step = _step_of(line, path) if line.endswith(b"\n") else None
        if step is None or step > last_step:
            return
        new.write(line)
        if step == last_step:
            return


def _step_of(line: bytes, path: Path) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path} holds a line that no run wrote: move the file away to go on") from error


def read_tail(run_dir: Path, lines: int) -> list[dict[str, Any]]:
    """Up to `lines` objects from the end of RUN/metrics.jsonl, oldest first; its last 256 KiB alone are read.

    A last line without a line end, which a kill leaves, is no line. Raises OSError where the file cannot be read, and
    ValueError for a line that no run wrote.
    """
    with (run_dir / METRICS_NAME).open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0)
        file.seek(start)
        content = file.read(_TAIL_BYTES)
    whole = content.split(b"\n")[:-1]
    if start:
        whole = whole[1:]
    return [_parse(line) for line in whole[-lines:]]


def _parse(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        metrics = json.loads(line)
        if isinstance(metrics, dict) and type(metrics.get("step")) is int:
            return metrics
    raise ValueError(f"{METRICS_NAME} holds a line that no run wrote")
