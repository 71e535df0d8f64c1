"""metrics.jsonl: one object a step, and the process's memory."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from megaselect.errors import CheckpointError


class MetricsFile:
    """Appends a line a step, flushed, so that a killed run loses at most the line it was writing."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Lines of steps after resumed_step, which will be done again, are cut off; 0 starts anew."""
        self._file = _cut(path, resumed_step).open("a")

    def write(self, metrics: dict[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._file.close()


def _cut(path: Path, last_step: int) -> Path:
    kept = []
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n") and _step_of(line, path) <= last_step:
                kept.append(line)
    aside = path.with_suffix(".partial")
    try:
        aside.write_text("".join(kept))
        aside.replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}; choose another --run-dir") from error
    return path


def _step_of(line: str, path: Path) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} holds a line that no run wrote: move the file away to go on") from error


def reset_peak_bytes(device: torch.device) -> None:
    """Start a new measurement of `peak_bytes`; on a CPU the process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most bytes of tensors since the reset on a GPU; on a CPU the process's largest resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The process's largest resident size so far."""
    # First /proc: getrusage also counts, on Linux, what the process that started this one held at that moment.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
