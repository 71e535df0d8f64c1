"""What looks at chosen steps from outside: torch's profiler, and the GPU allocator's history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from megaselect.config import Config, LoggingConfig
from megaselect.errors import DeviceError
from megaselect.training.memory_snapshot import MemorySnapshot
from megaselect.training.phases import PhaseTimes
from megaselect.training.profiling import StepProfiler
from megaselect.units import parse_steps


def check_profilers(logging: LoggingConfig, device: torch.device) -> None:
    """Refuse, before a run begins, what its device does not have. Raises DeviceError."""
    if logging.memory_snapshot and device.type != "cuda":
        raise DeviceError(
            f"--memory-snapshot: torch keeps a history of memory on a GPU alone, and this run is on a {device.type}: "
            "leave it out; --profile works on any device"
        )


class Profilers:
    """Enter it around the run, and `step(n)` around step n, counted from 1. note: tells where a file was written.

    phases: hears of the phases of each step.
    """

    def __init__(
        self, config: Config, phases: PhaseTimes, run_dir: Path, device: torch.device, note: Callable[[str], None]
    ) -> None:
        logging, training = config.logging, config.training
        self._profiler = self._snapshot = None
        if logging.profile is not None:
            steps = parse_steps(logging.profile, "--profile")
            micro_batches = training.global_batch_size // training.micro_batch_size
            self._profiler = StepProfiler(steps, micro_batches, phases, run_dir, device, note)
        if logging.memory_snapshot:
            self._snapshot = MemorySnapshot(run_dir, note)

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step."""
        if self._snapshot is not None:
            self._snapshot.step_begins(number)
        with self._profiler.step(number) if self._profiler is not None else nullcontext():
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Write what is still open."""
        for profiler in (self._snapshot, self._profiler):
            if profiler is not None:
                profiler.close()
