"""What torch's allocator gives out during a step: knows nothing of autograd, hooks, modes or compilers."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.device import allocated_bytes, peak_bytes, reset_peak

BACKWARD = "backward begins"


class Allocated(NamedTuple):
    """Bytes beyond those that were there before. held: between forward and backward. peak: the most at any time."""

    held: int
    peak: int


def allocated(forward: Callable[[], Tensor], device: torch.device) -> Allocated:
    """Of a step: `forward` gives the loss, whose backward runs then. Gradients should be there already."""
    gc.collect()
    gc.disable()  # what earlier calls left in cycles must not be freed meanwhile
    try:
        return _on_gpu(forward, device) if device.type == "cuda" else _on_cpu(forward)
    finally:
        gc.enable()


def _on_gpu(forward: Callable[[], Tensor], device: torch.device) -> Allocated:
    before = allocated_bytes(device) or 0
    reset_peak(device)
    loss = forward()
    held = (allocated_bytes(device) or 0) - before
    loss.backward()
    return Allocated(held, (peak_bytes(device) or 0) - before)


def _on_cpu(forward: Callable[[], Tensor]) -> Allocated:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        loss = forward()
        with record_function(BACKWARD):
            loss.backward()
        del loss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return _summed(json.loads(path.read_text())["traceEvents"])


def _summed(events: list[dict[str, Any]]) -> Allocated:
    """Of a trace as torch.profiler exports it."""
    begins = next(event["ts"] for event in events if event.get("name") == BACKWARD)
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    held = total = peak = 0
    for time, change in changes:
        total += change
        peak = max(peak, total)
        if time < begins:
            held = total
    return Allocated(held, peak)
