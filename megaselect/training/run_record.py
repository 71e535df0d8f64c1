"""run.json: how a run came to be where it is, one segment for each time that it was started.

    {"format_version": 1, "segments": [{"state": "stopped", "reason": "SIGTERM", "first_step": 0, "last_step": 412, ...

The last segment is the run's state now. One that says "running" while no process holds the run's lock was killed; the
next start writes that down. No torch.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import megaselect
from megaselect.errors import MegaselectError, RunDirectoryError
from megaselect.files import write_atomically
from megaselect.training.metrics_file import read_tail

RECORD_NAME = "run.json"
FORMAT_VERSION = 1
_LONGEST_REASON = 300  # characters

RunEnd = Literal["running", "finished", "stopped", "failed", "killed"]


@dataclass(frozen=True)
class Segment:
    """One process's part of a run. reason: the signal or limit that stopped it, or the first line of its error.

    Steps are optimizer steps done: the segment went from first_step to last_step (None: it goes on). Times are UTC in
    ISO 8601. command: the process's argument list; of several ranks, the first one's. layout: of the ranks, see
    Layout.to_dict; None where a version wrote the segment that knew of one process alone.
    """

    state: RunEnd
    reason: str | None
    first_step: int
    last_step: int | None
    started: str
    ended: str | None
    pid: int
    host: str
    command: list[str]
    versions: dict[str, str]
    device: str
    layout: dict[str, int | str] | None = None

    @classmethod
    def begin(
        cls, first_step: int, device: str, torch_version: str, layout: dict[str, int | str] | None = None
    ) -> Self:
        """This process, which starts at first_step now."""
        versions = {"megaselect": megaselect.__version__, "torch": torch_version, "python": platform.python_version()}
        return cls(
            *("running", None, first_step, None, _now(), None, os.getpid(), socket.gethostname()),
            *(sys.argv, versions, device, layout),
        )


def read_segments(run_dir: Path) -> list[Segment]:
    """Oldest first; none where there is no run.json. Raises RunDirectoryError where it is not a run's."""
    path = run_dir / RECORD_NAME
    try:
        segments = [_segment(part) for part in json.loads(path.read_bytes())["segments"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "no run wrote it, or it is damaged"
        raise RunDirectoryError(f"cannot read {path}: {why}") from error
    return segments


def set_damaged_aside(run_dir: Path) -> list[str]:
    """Rename a run.json that says nothing, which must not keep a run from going on; a note on it. Raises OSError."""
    try:
        read_segments(run_dir)
    except RunDirectoryError:
        aside = run_dir / f"{RECORD_NAME}.damaged"
        (run_dir / RECORD_NAME).replace(aside)
        return [f"note: {run_dir / RECORD_NAME} could not be read: it is {aside.name} now, and a new one begins"]
    return []


def changed_device(before: Segment | None, now: Segment) -> list[str]:
    """A note where a run goes on elsewhere: sums are made in another order there. So they are by other threads."""
    if before is None or not now.first_step or before.device == now.device:
        return []
    return [
        f"note: the run was on {before.device} and is on {now.device} now: the same bits need the same device and, on "
        "a CPU, as many threads (OMP_NUM_THREADS)"
    ]


class RunRecord:
    """Keeps RUN/run.json from begin() to the end of its `with` block.

    stopped_by: set inside, why the run ended before its last step. note: is told where the end cannot be written.
    """

    def __init__(self, run_dir: Path, segment: Segment, note: Callable[[str], None]) -> None:
        self._run_dir, self._note = run_dir, note
        self._before = read_segments(run_dir)
        self._segment = segment
        self.stopped_by: str | None = None

    @property
    def segment_before(self) -> Segment | None:
        """The one that this run goes on from."""
        return self._before[-1] if self._before else None

    def begin(self) -> None:
        """Write down that the run goes on. Raises OSError."""
        if self._before and self._before[-1].state == "running":
            killed = self._before[-1]
            self._before[-1] = replace(killed, state="killed", last_step=self._last_step(killed))
        self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        state, reason = self._how(error)
        last_step = self._last_step(self._segment)
        self._segment = replace(self._segment, state=state, reason=reason, last_step=last_step, ended=_now())
        try:
            self._write()
        except OSError as problem:
            self._note(f"cannot write {self._run_dir / RECORD_NAME}: {problem.strerror}; it says that the run goes on")

    def _how(self, error: BaseException | None) -> tuple[RunEnd, str | None]:
        if isinstance(error, KeyboardInterrupt):
            return "stopped", "SIGINT"
        if error is not None:
            kind = "" if isinstance(error, MegaselectError) else f"{type(error).__name__}: "
            return "failed", f"{kind}{str(error).partition(chr(10))[0]}"[:_LONGEST_REASON]
        return ("stopped" if self.stopped_by else "finished"), self.stopped_by

    def _last_step(self, segment: Segment) -> int:
        """As the metrics have it: a killed run cannot be asked."""
        try:
            done = [line["step"] for line in read_tail(self._run_dir, 1)]
        except (OSError, ValueError):
            done = []
        return max([segment.first_step, *done])

    def _write(self) -> None:
        segments = [asdict(segment) for segment in (*self._before, self._segment)]
        record = {"format_version": FORMAT_VERSION, "segments": segments}
        write_atomically(self._run_dir / RECORD_NAME, (json.dumps(record, indent=1) + "\n").encode())


def _segment(part: dict[str, Any]) -> Segment:
    """Keys of a later version are passed over. Raises KeyError, TypeError or ValueError."""
    segment = Segment(
        **{each.name: part[each.name] for each in fields(Segment) if each.default is MISSING or each.name in part}
    )
    if segment.state not in get_args(RunEnd) or type(segment.first_step) is not int:
        raise ValueError("not a segment of a run")
    if not isinstance(segment.layout, dict | None):
        raise ValueError("the layout of its ranks is none")
    return segment


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
