"""Parts of a run, the most valuable first: each within its own limit, and lost to none that fails after it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
LEAST_SECONDS = 5.0  # below them nothing is begun


class Clock:
    """Counts from its making. seconds: of the whole run."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, 0 at least."""
        return max(self._deadline - time.monotonic(), 0.0)


@dataclass
class Part:
    """work: gets a Clock with `limit` seconds, or less where the run has less left, and returns what there is to say.

    What it finds it writes to disk itself, as soon as it is found. `state` stays `waiting` until it begins.
    """

    name: str
    what: str
    limit: float
    work: Callable[[Clock], str]
    state: str = "waiting"
    seconds: float | None = None
    note: str = ""

    def row(self) -> Row:
        """For a report."""
        return {"part": self.name, "what": self.what, "state": self.state, "seconds": self.seconds, "note": self.note}


def run_parts(parts: Sequence[Part], clock: Clock, write_report: Callable[[], None]) -> None:
    """All of them in order; the report is written anew before the first one and after each."""
    write_report()
    for part in parts:
        _run(part, clock)
        write_report()


def _run(part: Part, clock: Clock) -> None:
    limit = min(part.limit, clock.left())
    if limit < LEAST_SECONDS:
        part.state, part.note = "not run", f"{limit:.0f} s were left"
        return
    part.state = "interrupted"  # what a report says that is written while it runs
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: setattr(part, "seconds", round(time.monotonic() - started, 1)))
        try:
            part.note = part.work(Clock(limit))
            part.state = "done"
        except Exception as error:  # a part that fails is a finding; the others still run
            part.state, part.note = "failed", f"{type(error).__name__}: {error}"
