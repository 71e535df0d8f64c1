"""A user's own code in a run: it hears what happens and may stop the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megaselect.errors import CallbackError
from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport
from megaselect.training.signals import StopRequest


class Callback:
    """Derive from it and override what the run should tell; every method does nothing here.

    A method may set self.should_stop = True: the run then ends at its step, saved, with the summary's stopped_by
    "callback". A run begins with should_stop = False. An exception of a callback ends the run with a CallbackError.
    """

    should_stop: bool = False

    def on_start(self, header: RunHeader) -> None:
        """Once, before the first step."""

    def on_saved(self, report: SavedReport) -> None:
        """The bytes saved for backward, after the first micro-batch and after the first one with another mode."""

    def on_step(self, metrics: Metrics) -> None:
        """After every optimizer step: its line of metrics.jsonl, but for valid_loss, which on_evaluation tells."""

    def on_evaluation(self, step: int, loss: float) -> None:
        """After an evaluation on the validation split: the mean loss in nats per token."""

    def on_note(self, text: str) -> None:
        """Whatever else a user should read; those of the start are in the header. May come before on_start."""

    def on_finish(self, summary: RunSummary) -> None:
        """Once, at the end, also where something stopped the run."""

    def on_fail(self, reason: str) -> None:
        """In place of on_finish, where an exception ended the run. reason: its first line.

        An exception in here is dropped in favour of that one.
        """


class CallbackSink:
    """A callback as a sink of a run. Raises CallbackError, with what the callback raised as its cause."""

    def __init__(self, callback: Callback, stop: StopRequest) -> None:
        self._callback, self._stop = callback, stop

    def start(self, header: RunHeader) -> None:
        """See Sink.start."""
        self._callback.should_stop = False
        self._call("on_start", header)

    def identity(self) -> Mapping[str, str]:
        """A callback knows no runs."""
        return {}

    def saved(self, report: SavedReport) -> None:
        """See Sink.saved."""
        self._call("on_saved", report)

    def step(self, metrics: Metrics) -> None:
        """See Sink.step. The callback has a copy: what it changes there does not get into metrics.jsonl."""
        self._call("on_step", dict(metrics))

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """Progress is for the console."""

    def evaluation(self, step: int, loss: float) -> None:
        """See Sink.evaluation."""
        self._call("on_evaluation", step, loss)

    def note(self, text: str) -> None:
        """See Sink.note."""
        self._call("on_note", text)

    def finish(self, summary: RunSummary) -> None:
        """See Sink.finish."""
        self._call("on_finish", summary)

    def fail(self, reason: str) -> None:
        """See Sink.fail."""
        self._call("on_fail", reason)

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self._callback, method)(*arguments)
        except CallbackError:  # of another one, which a note of this one's reached
            raise
        except Exception as error:
            said = f"{type(self._callback).__name__}.{method} raised {type(error).__name__}: {error}"
            raise CallbackError(f"{said}; the run ended there: mend the callback, and train again") from error
        if self._callback.should_stop:
            self._stop.ask("callback")
