"""What the trainer tells the world, and who may listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

Metrics = dict[str, float | int | None]


@dataclass(frozen=True)
class RunHeader:
    """What is known before the first step. device, dtype, model, attention, recompute and data are ready to print."""

    config_name: str
    device: str
    dtype: str
    model: str
    parameters: int
    attention: str
    recompute: str
    data: str
    run_dir: str
    max_steps: int
    first_step: int
    config: dict[str, Any]
    notes: list[str]


@dataclass(frozen=True)
class StoredReport:
    """Bytes that the first micro-batch kept for backward. By layer or chunk of layers; totals include the rest.

    alternatives: setting -> bytes that it would keep per layer, for comparison.
    """

    predicted: dict[str, int]
    measured: dict[str, int]
    predicted_total: int
    measured_total: int
    alternatives: dict[str, int]

    @property
    def matches(self) -> bool:
        """Equal to the byte, in every layer and in all."""
        return self.predicted == self.measured and self.predicted_total == self.measured_total


@dataclass(frozen=True)
class RunSummary:
    """A run's end. Speeds are medians over this process's steps; losses are the last and the best seen by it.

    peak_kind: what peak_bytes counts, ready to print after it.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float | None
    valid_loss: float | None
    best_valid_loss: float | None
    tokens_per_s: float | None
    step_ms: float | None
    stored_bytes: int | None
    peak_bytes: int | None
    peak_kind: str
    mfu: float | None
    hfu: float | None
    recompute: str
    sample: str | None
    run_dir: str
    interrupted: bool


class Sink(Protocol):
    """Receives a run's events, in this order: start, stored, then step, evaluation and note, then finish."""

    def start(self, header: RunHeader) -> None:
        """Once, before the first step."""

    def stored(self, report: StoredReport) -> None:
        """Once, after the first micro-batch."""

    def step(self, metrics: Metrics) -> None:
        """After every optimizer step."""

    def evaluation(self, step: int, loss: float) -> None:
        """After an evaluation on the validation split."""

    def note(self, text: str) -> None:
        """Something to read once."""

    def finish(self, summary: RunSummary) -> None:
        """Once, at the end, also where the run was interrupted."""
