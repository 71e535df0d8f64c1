"""The last lines of metrics.jsonl, however long the file is. No torch."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

METRICS_NAME = "metrics.jsonl"
_TAIL_BYTES = 2**18  # a line takes under 1 KiB, and more where a blend has many sources


def read_tail(run_dir: Path, lines: int) -> list[dict[str, Any]]:
    """Up to `lines` objects from the end of RUN/metrics.jsonl, oldest first; its last 256 KiB alone are read.

    A last line without a line end, which a kill leaves, is no line. Raises OSError where the file cannot be read, and
    ValueError for a line that no run wrote.
    """
    with (run_dir / METRICS_NAME).open("rb") as file:
        start = max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0)
        file.seek(start)
        content = file.read(_TAIL_BYTES)
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
