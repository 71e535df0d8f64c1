"""What a comparison asks of a child process, and what comes back, as JSON files. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megaselect.comparison.result import ModelFacts, PeakBytes, SavedBytes, StepSample, TimelinePoint
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
class ModelChoices:
    """How a model of anybody's is made and trained. model: as find_factory takes it. device: auto, cpu or cuda.

    dtype: torch's default one while the model is made, fp32, bf16 or fp16; None: fp32. autocast: what products run in;
    None: no autocast. batch_size, seq_length: of token batches; None: 1, and as many tokens as the config allows.
    """

    model: str
    device: str = "auto"
    dtype: str | None = None
    autocast: str | None = None
    batch_size: int | None = None
    seq_length: int | None = None
    seed: int = 1234
    deterministic: bool = False


@dataclass(frozen=True)
class ModelJob:
    """Train a model of anybody's, `warmup_steps` untimed and `steps` timed steps on one batch.

    method: a setting of megaselect.recompute, or a peer. round: from 1; in the first bytes are predicted, and memory is
    followed in one more step.
    """

    choices: ModelChoices
    method: str
    round: int
    steps: int
    warmup_steps: int


@dataclass(frozen=True)
class TrainMeasurement:
    """What one process measured in one setting; the fields are those of TrainedSetting and Context.

    notes: on what was measured, which rows may share.
    """

    device: str
    dtype: str
    parameters: int
    peak_flops: float | None
    torch_version: str
    model_flops: int | None
    hardware_flops: int | None
    saved: SavedBytes
    static: StaticBytes
    peak: PeakBytes
    predicted_peak_bytes: int | None
    samples: tuple[StepSample, ...]
    losses: tuple[float | None, ...]
    grad_norms: tuple[float | None, ...]
    weights_sha256: str
    timeline: tuple[TimelinePoint, ...] = ()
    gradients_sha256: tuple[str, ...] = ()
    model: ModelFacts | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchJob:
    """Try micro-batches of growing size until one does not train; the search goes on from `outcomes`.

    limit_bytes: memory that the process may take; None: what the device has. log_path: where a line goes for each try.
    """

    config: dict[str, Any]
    outcomes: tuple[tuple[int, str], ...]
    limit_bytes: int | None
    log_path: str


Task = TrainJob | BatchJob | ModelJob  # what a child reads


@dataclass(frozen=True)
class Answer:
    """A child's last word. failure: why there is no measurement. shared: it would stop every other setting as well.

    absence: why there is nothing to measure, such as a package that is not installed, which is no failure.
    """

    measurement: TrainMeasurement | None = None
    failure: str | None = None
    shared: bool = False
    absence: str | None = None
