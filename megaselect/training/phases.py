"""Where a step's time goes: waiting for data, forward, backward, optimizer."""

from __future__ import annotations

from typing import Protocol

import torch

from megaselect.training.clock import Clock

PHASES = ("data", "forward", "backward", "optimizer")


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
