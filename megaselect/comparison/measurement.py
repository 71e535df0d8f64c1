"""What a comparison asks of a child process, and what comes back, as JSON files. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megaselect.comparison.result import PeakBytes, SavedBytes, StepSample, TimelinePoint
from megaselect.prediction.weights import StaticBytes

OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class TrainJob:
    """Train `warmup_steps` untimed and `steps` timed steps of the config's run, from its first sample on.

    round: from 1. with_timeline: one more step, in which memory is followed. snapshot_path: where a GPU's memory
    snapshot of that step goes.
    """

    config: dict[str, Any]
    round: int
    steps: int
    warmup_steps: int
    with_timeline: bool
    snapshot_path: str | None = None


@dataclass(frozen=True)
class TrainMeasurement:
    """What one process measured in one setting; the fields are those of TrainedSetting and Context."""

    device: str
    dtype: str
    parameters: int
    peak_flops: float | None
    torch_version: str
    model_flops: int
    hardware_flops: int
    saved: SavedBytes
    static: StaticBytes
    peak: PeakBytes
    predicted_peak_bytes: int
    samples: tuple[StepSample, ...]
    losses: tuple[float | None, ...]
    grad_norms: tuple[float | None, ...]
    weights_sha256: str
    timeline: tuple[TimelinePoint, ...] = ()


@dataclass(frozen=True)
class BatchJob:
    """Try micro-batches of growing size until one does not train; the search goes on from `outcomes`.

    limit_bytes: memory that the process may take; None: what the device has. log_path: where a line goes for each try.
    """

    config: dict[str, Any]
    outcomes: tuple[tuple[int, str], ...]
    limit_bytes: int | None
    log_path: str


Task = TrainJob | BatchJob  # what a child reads


@dataclass(frozen=True)
class Answer:
    """A child's last word. failure: why there is no measurement. shared: it would stop every other setting as well."""

    measurement: TrainMeasurement | None = None
    failure: str | None = None
    shared: bool = False
