"""Where a step's time goes: waiting for data, forward, backward, optimizer."""

from __future__ import annotations

import itertools
import time
from typing import Any, Protocol

import torch

from megaselect.devices import synchronise

PHASES = ("data", "forward", "backward", "optimizer")


class Clock:
    """Marks points in a device's work and tells the time between them: events on a GPU, a host clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[Any] = []

    def clear(self) -> None:
        """Forget what something that raised has marked: it would count as the next one's time."""
        self._marks.clear()

    def mark(self) -> None:
        """A point after all work that has been asked for so far."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        """Between each mark and the next since the last call; waits for the device."""
        synchronise(self.device)
        marks, self._marks = self._marks, []
        pairs = list(itertools.pairwise(marks))
        if self.device.type == "cuda":
            return [first.elapsed_time(second) for first, second in pairs]
        return [1e3 * (second - first) for first, second in pairs]


class PhaseObserver(Protocol):
    """Hears of a step's phases as they come and go."""

    def start(self) -> None:
        """The step begins, or begins again."""

    def done(self, phase: str) -> None:
        """`phase` ends here."""


class PhaseTimes:
    """Milliseconds of each phase, summed over a step's micro-batches; on a GPU those of the device's own work.

    observer: is told the same, where there is one.
    """

    def __init__(self, device: torch.device) -> None:
        self._clock = Clock(device)
        self._names: list[str] = []
        self.observer: PhaseObserver | None = None

    def start(self) -> None:
        """The step begins; whatever a step that raised had marked is forgotten."""
        self._clock.clear()
        self._names.clear()
        self._clock.mark()
        if self.observer is not None:
            self.observer.start()

    def done(self, phase: str) -> None:
        """`phase` ends here, and what comes next begins."""
        self._names.append(phase)
        self._clock.mark()
        if self.observer is not None:
            self.observer.done(phase)

    def milliseconds(self) -> dict[str, float]:
        """Phase -> milliseconds since `start`; waits for the device."""
        totals = dict.fromkeys(PHASES, 0.0)
        for name, span in zip(self._names, self._clock.milliseconds(), strict=True):
            totals[name] += span
        return totals
