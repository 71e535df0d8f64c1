"""Memory of a process that trains: what is held between steps, the highest values, and the course over one step."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megaselect.comparison.result import PeakBytes, TimelinePoint
from megaselect.compatibility import MemoryHistory
from megaselect.host_memory import peak_resident_bytes
from megaselect.models.gpt.model import GPT
from megaselect.prediction.weights import StaticBytes
from megaselect.training.optimizer import MixedPrecisionAdamW

TIMELINE_POINTS = 300
# What torch's allocator on a GPU records when it hands memory out, and when it may hand it out again.
_SNAPSHOT_SIGNS = {"alloc": 1, "free_completed": -1}


def gradient_bytes(model: GPT, optimizer: MixedPrecisionAdamW) -> int:
    """Of the gradients that are there now, in whichever dtype they are accumulated."""
    holders = {id(tensor): tensor for tensor in (*model.parameters(), *optimizer.masters.values())}
    return sum(_bytes(tensor.grad) for tensor in holders.values() if tensor.grad is not None)


def static_bytes(model: GPT, optimizer: MixedPrecisionAdamW, gradients: int) -> StaticBytes:
    """What is held between steps, with the `gradients` that a step adds. The optimizer must have taken a step."""
    masters = states = 0
    for name, tensor in optimizer.tensors().items():
        if name.startswith("master."):
            masters += _bytes(tensor)
        else:
            states += _bytes(tensor)
    return StaticBytes(sum(_bytes(weight) for weight in model.parameters()), gradients, masters, states)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def peaks(device: torch.device) -> PeakBytes:
    """Highest values since reset_peak_bytes; the process's since its start. Nothing counts tensors on a CPU: None."""
    if device.type != "cuda":
        return PeakBytes(None, None, peak_resident_bytes())
    allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    return PeakBytes(allocated, reserved, peak_resident_bytes())


def follow_on_cpu(step: Callable[[], object], held_before: int) -> list[tuple[float, int]]:
    """(seconds, bytes of tensors held) after every allocation and release of a step, by torch's profiler.

    held_before: bytes of tensors that are there when the step begins.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = sorted(((event.start_ns(), event.nbytes()) for event in events), key=lambda change: change[0])
    return course([(when / 1e9, change) for when, change in changes], held_before)


def follow_on_gpu(step: Callable[[], object], held_before: int, snapshot_path: Path) -> list[tuple[float, int]]:
    """The same for a GPU, from a snapshot, which is written for torch's own viewer."""
    MemoryHistory.start()
    try:
        step()
        torch.cuda.synchronize()
        snapshot = MemoryHistory.snapshot()
    finally:
        MemoryHistory.stop()
    with snapshot_path.open("wb") as file:
        pickle.dump(snapshot, file)
    return course(snapshot_changes(snapshot["device_traces"]), held_before)


def snapshot_changes(device_traces: Iterable[Sequence[dict[str, Any]]]) -> list[tuple[float, int]]:
    """(seconds, bytes) of each allocation (positive) and release in the traces of a snapshot."""
    events = [event for trace in device_traces for event in trace if event["action"] in _SNAPSHOT_SIGNS]
    return [(event["time_us"] / 1e6, _SNAPSHOT_SIGNS[event["action"]] * event["size"]) for event in events]


def course(changes: Sequence[tuple[float, int]], held_before: int) -> list[tuple[float, int]]:
    """Running sums of the changes, in time from the first one."""
    held, points = held_before, []
    for when, change in changes:
        held += change
        points.append((when - changes[0][0], held))
    return points


def thin_out(points: Sequence[tuple[float, int]], count: int = TIMELINE_POINTS) -> tuple[TimelinePoint, ...]:
    """At most `count` points: of each stretch of time the highest, so that no peak is lost; and the last one."""
    if not points:
        return ()
    stretch = max(points[-1][0], 1e-9) / (count - 1)
    highest: dict[int, tuple[float, int]] = {}
    for point in points[:-1]:
        slot = min(int(point[0] / stretch), count - 2)
        if slot not in highest or point[1] > highest[slot][1]:
            highest[slot] = point
    return tuple(TimelinePoint(*point) for point in (*highest.values(), points[-1]))
