"""The last lines of metrics.jsonl, however long the file is. No torch."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS_NAME = "metrics.jsonl"
_BYTES_PER_LINE = 4096  # more than a line of metrics takes


def read_tail(run_dir: Path, lines: int) -> list[dict[str, Any]]:
    """Up to `lines` objects from the end of RUN/metrics.jsonl, oldest first, in memory that its length does not change.

    A last line without a line end, which a kill leaves, is no line. Raises OSError where the file cannot be read, and
    ValueError for a line that no run wrote.
    """
    wanted = lines * _BYTES_PER_LINE
    with (run_dir / METRICS_NAME).open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - wanted, 0)
        file.seek(start)
        content = file.read(wanted)
    whole = content.split(b"\n")[:-1]
    if start:
        whole = whole[1:]
    return [_parse(line) for line in whole[-lines:]]


def _parse(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        metrics = json.loads(line)
        if isinstance(metrics, dict) and type(metrics.get("step")) is int:
            return metrics
    raise ValueError(f"{METRICS_NAME} holds a line that no run wrote")
