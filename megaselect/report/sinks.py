"""Several sinks as one. The events and the protocol are the trainer's: training never imports a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport, Sink

__all__ = ["Metrics", "RunHeader", "RunSummary", "SavedReport", "Sink", "Sinks"]


class Sinks:
    """A sink that hands every event to each of its sinks, in the order given."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def start(self, header: RunHeader) -> None:
        """See Sink.start."""
        for sink in self._sinks:
            sink.start(header)

    def identity(self) -> Mapping[str, str]:
        """See Sink.identity."""
        return {name: value for sink in self._sinks for name, value in sink.identity().items()}

    def saved(self, report: SavedReport) -> None:
        """See Sink.saved."""
        for sink in self._sinks:
            sink.saved(report)

    def step(self, metrics: Metrics) -> None:
        """See Sink.step."""
        for sink in self._sinks:
            sink.step(metrics)

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """See Sink.evaluating."""
        for sink in self._sinks:
            sink.evaluating(split, done, samples)

    def evaluation(self, step: int, loss: float) -> None:
        """See Sink.evaluation."""
        for sink in self._sinks:
            sink.evaluation(step, loss)

    def note(self, text: str) -> None:
        """See Sink.note."""
        for sink in self._sinks:
            sink.note(text)

    def finish(self, summary: RunSummary) -> None:
        """See Sink.finish."""
        for sink in self._sinks:
            sink.finish(summary)

    def fail(self, reason: str) -> None:
        """See Sink.fail. All of them hear of it, and no error of theirs takes the place of the run's own."""
        for sink in self._sinks:
            with suppress(Exception):
                sink.fail(reason)
