"""What looks at chosen steps from outside: torch's profiler, and the GPU allocator's history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from megaselect.config.schema import LoggingConfig


class Instruments:
    """Enter it around the run, and `step(n)` around step n, counted from 1. note: tells where a file was written."""

    def __init__(
        self, logging: LoggingConfig, run_dir: Path, device: torch.device, note: Callable[[str], None]
    ) -> None:
        self._logging, self._run_dir, self._device, self._note = logging, run_dir, device, note

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one step."""
        yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Write what is still open."""
