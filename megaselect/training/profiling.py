"""torch's profiler around chosen steps: a trace for Chrome and Perfetto, and a table of the longest operations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megaselect.files import publish
from megaselect.training.phases import PhaseTimes

TABLE_ROWS = 10
_FOLLOWING = {"data": "forward", "forward": "backward"}


class PhaseRanges:
    """Names the stretches of a step in a trace by their phase; between micro-batches, data follows backward."""

    def __init__(self, micro_batches: int) -> None:
        self._micro_batches = self._left = micro_batches
        self._range: record_function | None = None

    def start(self) -> None:
        """The step begins, or begins again."""
        self._left = self._micro_batches
        self._go_on_to("data")

    def done(self, phase: str) -> None:
        """`phase` ends here, and what follows it begins."""
        self._left -= phase == "backward"
        after_backward = "data" if self._left else "optimizer"
        self._go_on_to(None if phase == "optimizer" else _FOLLOWING.get(phase, after_backward))

    def close(self) -> None:
        """Whatever is open ends here."""
        self._go_on_to(None)

    def _go_on_to(self, phase: str | None) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
        self._range = record_function(phase) if phase else None
        if self._range is not None:
            self._range.__enter__()


class StepProfiler:
    """Profiles those of `steps` that the run takes, and writes RUN/profile/steps-FIRST-LAST.json.gz and .txt.

    While it does, `phases` names the phases in the trace. The profiler watches: no bit of the training changes.
    note: tells where the files are, or that they could not be written.
    """

    def __init__(
        self,
        steps: range,
        micro_batches: int,
        phases: PhaseTimes,
        run_dir: Path,
        device: torch.device,
        note: Callable[[str], None],
    ) -> None:
        self._steps, self._micro_batches, self._phases = steps, micro_batches, phases
        self._home, self._device, self._note = run_dir / "profile", device, note
        self._profile: profile | None = None
        self._taken: list[int] = []

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step."""
        if number not in self._steps:
            yield
            return
        if self._profile is None:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr that it starts and stops
            self._profile = profile(activities=self._activities())
            self._profile.start()
        self._taken.append(number)
        ranges = self._phases.observer = PhaseRanges(self._micro_batches)
        try:
            with record_function(f"step {number}"):
                try:
                    yield
                finally:
                    ranges.close()
        finally:
            self._phases.observer = None
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was profiled and not yet written; say so where the run never came to the steps."""
        if not self._taken:
            self._note(f"note: --profile: the run took none of the steps {self._steps[0]} to {self._steps[-1]}")
        if self._profile is None:
            return
        self._profile.stop()
        try:
            self._write(self._profile)
        except OSError as error:
            self._note(f"profile: cannot write to {self._home}: {error.strerror}")
        self._profile = None

    def _write(self, profiled: profile) -> None:
        first, last = self._taken[0], self._taken[-1]
        name = f"steps-{first}" if first == last else f"steps-{first}-{last}"
        self._home.mkdir(parents=True, exist_ok=True)
        trace, aside = self._home / f"{name}.json.gz", self._home / f".{name}.partial.json.gz"
        profiled.export_chrome_trace(str(aside))
        publish(aside, trace)
        order = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = profiled.key_averages().table(sort_by=order, row_limit=TABLE_ROWS)
        (self._home / f"{name}.txt").write_text(table)
        self._note(f"profile: {trace}, for ui.perfetto.dev or chrome://tracing; the longest operations: {name}.txt")

    def _activities(self) -> list[ProfilerActivity]:
        on_gpu = self._device.type == "cuda"
        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
