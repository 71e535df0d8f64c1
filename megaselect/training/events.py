"""What the trainer tells the world, and who may listen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

Metrics = dict[str, float | int | None]


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON has no words for."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class RunHeader:
    """What is known before the first step. device, dtype, model, attention, recompute and data are ready to print.

    identity: what the sinks of the run that is continued called it (see Sink.identity); empty for a new run.
    ranks: how many and what they share, ready to print; empty for one.
    """

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
    identity: Mapping[str, str] = field(default_factory=dict)
    ranks: str = ""


@dataclass(frozen=True)
class SavedReport:
    """Bytes that the first micro-batch saved for backward. By layer or chunk of layers; totals include the rest.

    alternatives: setting -> bytes that it would keep per layer, for comparison; setting: which of them the run has now.
    """

    predicted: dict[str, int]
    measured: dict[str, int]
    predicted_total: int
    measured_total: int
    alternatives: dict[str, int]
    setting: str

    @property
    def matches(self) -> bool:
        """Equal to the byte, in every layer and in all."""
        return self.predicted == self.measured and self.predicted_total == self.measured_total


@dataclass(frozen=True)
class RunSummary:
    """A run's end. Speeds are medians over this process's steps; losses are the last and the best seen by it.

    peak_kind: what peak_bytes counts, ready to print after it. test_loss: on the test split, at the end of the run.
    skipped_steps: over the whole run. loss_spikes: in this process's steps. data_share: median share of a step's time
    that was spent waiting for data. phase_ms: phase of a step -> its median milliseconds. stopped_by: SIGINT, SIGTERM,
    SIGHUP, exit-after or callback; None where the run got to its last step and through the evaluations that follow it.
    """

    steps: int
    tokens: int
    seconds: float
    final_loss: float | None
    valid_loss: float | None
    best_valid_loss: float | None
    tokens_per_s: float | None
    step_ms: float | None
    saved_bytes: int | None
    peak_bytes: int | None
    peak_kind: str
    mfu: float | None
    hfu: float | None
    recompute: str
    sample: str | None
    run_dir: str
    stopped_by: str | None
    test_loss: float | None = None
    skipped_steps: int = 0
    loss_spikes: int = 0
    data_share: float | None = None
    phase_ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether something from outside stopped the run before its end, which a callback may also choose."""
        return self.stopped_by not in (None, "callback")


class Sink(Protocol):
    """Receives a run's events, in this order: start, saved, then step, evaluating, evaluation and note, then finish or
    fail.

    A sink that cannot record says so in a note and lets the run go on.
    """

    def start(self, header: RunHeader) -> None:
        """Once, before the first step."""

    def identity(self) -> Mapping[str, str]:
        """After start: what a continued run must hand back in its header, to be known as the same run."""

    def saved(self, report: SavedReport) -> None:
        """After the first micro-batch, and after the first one with another recompute mode."""

    def step(self, metrics: Metrics) -> None:
        """After every optimizer step."""

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """Before each micro-batch of an evaluation on a split, valid or test: so many of its samples are done."""

    def evaluation(self, step: int, loss: float) -> None:
        """After an evaluation on the validation split."""

    def note(self, text: str) -> None:
        """Something to read once."""

    def finish(self, summary: RunSummary) -> None:
        """Once, at the end, also where the run was interrupted."""

    def fail(self, reason: str) -> None:
        """Instead of finish, where an error ended the run; reason: one line."""


class SilentSink:
    """Hears everything and records nothing: of a rank for which another one speaks."""

    def start(self, header: RunHeader) -> None:
        """See Sink.start."""

    def identity(self) -> Mapping[str, str]:
        """See Sink.identity."""
        return {}

    def saved(self, report: SavedReport) -> None:
        """See Sink.saved."""

    def step(self, metrics: Metrics) -> None:
        """See Sink.step."""

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """See Sink.evaluating."""

    def evaluation(self, step: int, loss: float) -> None:
        """See Sink.evaluation."""

    def note(self, text: str) -> None:
        """See Sink.note."""

    def finish(self, summary: RunSummary) -> None:
        """See Sink.finish."""

    def fail(self, reason: str) -> None:
        """See Sink.fail."""


@contextmanager
def failures_told(sink: Sink) -> Iterator[None]:
    """What is raised inside, Ctrl-C included, is told to the sink before it goes on its way."""
    try:
        yield
    except BaseException as error:
        said = str(error).splitlines()
        sink.fail(f"{type(error).__name__}: {said[0]}" if said else type(error).__name__)
        raise
