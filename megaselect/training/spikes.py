"""Loss spikes: losses far above those of the steps before."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megaselect.training.metrics_file import read_tail

WINDOW_STEPS = 64
MIN_HISTORY_STEPS = 20  # fewer tell too little of the noise
# As OLMo 2 counts spikes (arXiv:2501.00656). Its mean and standard deviation of 1,000 steps are moved by the spikes
# themselves and come late; a median, and the median distance from it, are and do neither.
THRESHOLD_DEVIATIONS = 7.0
DEVIATION_PER_MEDIAN_DISTANCE = 1.4826  # of a normal distribution
# Where a loss hardly moves, as on a text that is known by heart, seven deviations are nothing worth a word.
THRESHOLD_SHARE = 0.05
# Losses above the threshold are one spike until so many in a row are below it. By then the median has gone over to a
# new level, if that is what it was.
CALM_STEPS = WINDOW_STEPS // 2
HISTORY_STEPS = WINDOW_STEPS + CALM_STEPS  # after these a detector goes on as if it had heard all
_TAIL_LINES = 2048  # hold as many losses, unless 19 steps of 20 had none


@dataclass(frozen=True)
class Spike:
    """A loss, and the median of those before it."""

    loss: float
    median: float
    steps: int

    def __str__(self) -> str:
        return f"loss spike: {self.loss:.4g} after {self.median:.4g} (median of the last {self.steps})"


class SpikeDetector:
    """Hears the losses of a run in order, those that are finite. history: the last HISTORY_STEPS of a continued run."""

    def __init__(self, history: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._calm_steps = CALM_STEPS
        for loss in history:
            self.update(loss)

    def update(self, loss: float) -> Spike | None:
        """What the loss is the beginning of, if it is one."""
        is_high = len(self._losses) >= MIN_HISTORY_STEPS and loss > self._threshold()
        begins = is_high and self._calm_steps >= CALM_STEPS
        spike = Spike(loss, statistics.median(self._losses), len(self._losses)) if begins else None
        self._calm_steps = 0 if is_high else self._calm_steps + 1
        self._losses.append(loss)
        return spike

    def _threshold(self) -> float:
        median = statistics.median(self._losses)
        distance = statistics.median(abs(loss - median) for loss in self._losses)
        deviations = THRESHOLD_DEVIATIONS * DEVIATION_PER_MEDIAN_DISTANCE * distance
        return median + max(deviations, THRESHOLD_SHARE * abs(median))


def recent_losses(run_dir: Path) -> list[float]:
    """The last losses in RUN/metrics.jsonl, HISTORY_STEPS at most; steps whose loss was not finite have none there."""
    losses = [line["loss"] for line in read_tail(run_dir, _TAIL_LINES) if line.get("loss") is not None]
    return losses[-HISTORY_STEPS:]
