"""Times between points in a device's work."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch

from megaselect.devices import synchronise


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
