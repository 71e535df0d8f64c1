"""One setting in one process: the first steps of the run that `train` would make, timed and weighed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import torch

from megaselect import ledger
from megaselect.build import build_model
from megaselect.comparison import memory
from megaselect.comparison.measurement import TrainJob, TrainMeasurement
from megaselect.comparison.result import SavedBytes, StepSample
from megaselect.config import Config
from megaselect.devices import device_name, peak_flops
from megaselect.models.gpt.apply_plan import applied_plan
from megaselect.prediction.peak import predicted_peak
from megaselect.prediction.saved_bytes import LayerShape, saved_tensors
from megaselect.prediction.weights import StaticBytes
from megaselect.recomputation.plan import RecomputePlan
from megaselect.training.accounting import saved_report, step_flops
from megaselect.training.datasets import Datasets
from megaselect.training.events import finite
from megaselect.training.memory import reset_peak_bytes
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.phases import Clock
from megaselect.training.state import RunState
from megaselect.training.step import StepOutcome, Stepper

PHASES = ("data", "forward", "backward", "optimizer")


def measure(job: TrainJob, datasets: Datasets) -> TrainMeasurement:
    """Train as the job says. Raises MegaselectError, and what torch raises where memory is short."""
    run = SettingRun(Config.from_dict(job.config), datasets)
    for _ in range(job.warmup_steps):
        run.step()
    reset_peak_bytes(run.device)
    samples = tuple(run.timed_step(job.round) for _ in range(job.steps))
    outcomes, weights = tuple(run.outcomes), run.weights_sha256()
    peak = memory.peaks(run.device)
    timeline: list[tuple[float, int]] = []
    if job.with_timeline:
        timeline = run.followed_step(job.snapshot_path)
        if peak.allocated is None:
            peak = replace(peak, allocated=max(held for _, held in timeline))
    assert run.saved is not None  # since the first step
    flops = step_flops(run.config, run.dtype.itemsize, applied_plan(run.model))
    batches = run.config.training.global_batch_size // run.config.training.micro_batch_size
    shape = LayerShape.of(run.config, run.dtype.itemsize)
    return TrainMeasurement(
        device=device_name(run.device),
        dtype=str(run.dtype).removeprefix("torch."),
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        peak_flops=peak_flops(run.device, run.dtype),
        torch_version=torch.__version__,
        model_flops=flops.model,
        hardware_flops=flops.hardware,
        saved=run.saved,
        static=run.static(),
        peak=peak,
        predicted_peak_bytes=predicted_peak(shape, applied_plan(run.model), batches, run.device.type == "cuda").bytes,
        samples=samples,
        losses=tuple(finite(outcome.loss) for outcome in outcomes),
        grad_norms=tuple(finite(outcome.grad_norm) for outcome in outcomes),
        weights_sha256=weights,
        timeline=memory.thin_out(timeline),
    )


class SettingRun:
    """The model of one setting while it is measured."""

    def __init__(self, config: Config, datasets: Datasets) -> None:
        self.config = config
        self.model = build_model(config)
        self.optimizer = MixedPrecisionAdamW(self.model, config.training)
        weight = next(self.model.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        self.outcomes: list[StepOutcome] = []
        self.saved: SavedBytes | None = None
        self._gradients = 0
        self._state = RunState(0, 0)
        self._clock = Clock(self.device)
        self._phases: list[str] = []
        self._stepper = Stepper(config.training, self.model, self.optimizer, datasets.train, self._phase_done)

    def step(self) -> float:
        """Take one step; its seconds, from an idle device to an idle device."""
        self._phases.clear()
        self._clock.clear()
        self._clock.mark()
        started = time.perf_counter()
        outcome, self._state = self._stepper.step(self._state, None if self.saved else self._watched_forward)
        seconds = time.perf_counter() - started
        self.outcomes.append(outcome)
        return seconds

    def timed_step(self, round_number: int) -> StepSample:
        """Take one step and time its phases."""
        seconds = self.step()
        spent = dict.fromkeys(PHASES, 0.0)
        for phase, milliseconds in zip(self._phases, self._clock.milliseconds(), strict=True):
            spent[phase] += milliseconds / 1e3
        parts = (spent["forward"], spent["backward"], spent["optimizer"])
        return StepSample(round_number, self._state.step, seconds, *parts)

    def followed_step(self, snapshot_path: str | None) -> list[tuple[float, int]]:
        """Take one step and follow what it holds; on a GPU by a snapshot, where one is asked for."""
        static = self.static()
        held = static.total - static.gradients
        if self.device.type != "cuda":
            return memory.follow_on_cpu(self.step, held)
        return memory.follow_on_gpu(self.step, held, Path(snapshot_path)) if snapshot_path else []

    def static(self) -> StaticBytes:
        """What is held between steps."""
        return memory.static_bytes(self.model, self.optimizer, self._gradients)

    def weights_sha256(self) -> str:
        """Of the fp32 weights, by name."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.optimizer.masters.items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def _phase_done(self, phase: str) -> None:
        self._phases.append(phase)
        self._clock.mark()
        if phase == "backward" and not self._gradients:  # in the first step, which is not timed
            self._gradients = memory.gradient_bytes(self.model, self.optimizer)

    def _watched_forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """The first forward pass, with the ledger watching."""
        with ledger.record(self.model) as record:
            loss = self.model(*inputs)
        self.saved = _saved_bytes(self.config, self.dtype.itemsize, applied_plan(self.model), record)
        return loss


def _saved_bytes(config: Config, element_bytes: int, plan: RecomputePlan, record: ledger.Ledger) -> SavedBytes:
    report = saved_report(config, element_bytes, plan, record)
    predicted: dict[str, int] = {}
    for row in saved_tensors(LayerShape.of(config, element_bytes), plan):
        predicted[row.name] = predicted.get(row.name, 0) + row.bytes
    measured: dict[str, int] = {}
    for kept in record.rows:
        measured[kept.name] = measured.get(kept.name, 0) + kept.bytes
    return SavedBytes(
        predicted=report.predicted_total,
        measured=report.measured_total,
        predicted_per_layer=report.predicted,
        measured_per_layer=report.measured,
        predicted_by_name=predicted,
        measured_by_name=measured,
    )
