"""A model of anybody's in one process: trained on its batch with a setting or a peer, timed and weighed."""

from __future__ import annotations

import hashlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.batches import arguments_of, called_with, loss_of
from megaselect.comparison import memory
from megaselect.comparison.measurement import Answer, ModelChoices, ModelJob, TrainMeasurement
from megaselect.comparison.model_rows import NONE, PEERS
from megaselect.comparison.peers import PeerAbsentError, apply_peer
from megaselect.comparison.result import ModelFacts, SavedBytes, StepSample
from megaselect.compatibility import fake_copy
from megaselect.devices import DTYPES, device_name, resolve_device
from megaselect.errors import MegaselectError, VerificationError, as_line
from megaselect.estimation.any_model import Optimizer, describe_batch, static_bytes
from megaselect.factories import batch_for, default_dtype, find_factory
from megaselect.ledger import Ledger, record
from megaselect.ledger.layer_paths import layer_paths
from megaselect.planning.any_model import recompute
from megaselect.recomputation.any_model import AnyModelPlan
from megaselect.training.events import finite
from megaselect.training.memory import reset_peak_bytes
from megaselect.training.phases import Clock
from megaselect.training.torch_state import set_determinism
from megaselect.trees import map_tensors, tensors_in

OPTIMIZER: Optimizer = "torch-adamw"  # torch.optim.AdamW, whose moments are in the weights' dtype
LEARNING_RATE = 1e-4


def measure_model(job: ModelJob) -> Answer:
    """Train as the job says. Raises what the model raises."""
    choices = job.choices
    set_determinism(choices.deterministic)
    try:
        device = resolve_device(choices.device)
        model, batch = _made(choices, device)
    except MegaselectError as error:
        return Answer(failure=str(error), shared=True)
    predicted = None
    try:
        if job.round == 1:
            predicted = _predicted(job.method, model, batch, _autocast(choices, device))
        plan = _applied(job.method, model)
    except PeerAbsentError as error:
        return Answer(absence=str(error))
    return Answer(measurement=_measured(job, ModelRun(model, batch, choices, device), plan, predicted))


def _made(choices: ModelChoices, device: torch.device) -> tuple[nn.Module, Any]:
    """The model and its batch, the same in every process."""
    _seed(choices.seed)
    factory = find_factory(choices.model)
    _seed(choices.seed)  # importing the module may have drawn
    with default_dtype(DTYPES[choices.dtype] if choices.dtype else None):
        made = factory()
        batch = batch_for(choices.model, made, choices.batch_size, choices.seq_length)
    return made.model.to(device), map_tensors(lambda tensor: tensor.to(device), batch)


def _seed(seed: int) -> None:
    """Every generator that a model may draw from unasked."""
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)


def _applied(method: str, model: nn.Module) -> AnyModelPlan | None:
    """Have the model recompute; the plan, where it is a setting's. Raises PeerAbsentError."""
    if method in PEERS:
        apply_peer(method, model)
        return None
    return None if method == NONE else recompute(model, method)


@dataclass(frozen=True)
class _Prediction:
    """ledger: of a forward pass without values; None: it does not run so, for the reason."""

    ledger: Ledger | None
    reason: str = ""


def _predicted(method: str, model: nn.Module, batch: Any, autocast: torch.autocast) -> _Prediction:
    """What the model will save, by a copy that has shapes and no values. Raises PeerAbsentError."""
    try:
        with fake_copy((model, batch)) as (copied, inputs), torch.enable_grad(), autocast:
            _applied(method, copied)
            with record(copied) as ledger:
                called_with(copied, inputs)
        return _Prediction(ledger)
    except PeerAbsentError:
        raise
    except Exception as error:  # whatever does not work without values may work with them
        return _Prediction(None, as_line(error))


def _autocast(choices: ModelChoices, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, DTYPES[choices.autocast or "bf16"], enabled=choices.autocast is not None)


class ModelRun:
    """A model while it is measured. Every step is on the same batch and draws from a seed of its own."""

    def __init__(self, model: nn.Module, batch: Any, choices: ModelChoices, device: torch.device) -> None:
        self.model, self.batch, self.choices, self.device = model, batch, choices, device
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        self.ledger: Ledger | None = None
        self.has_loss = True
        self.losses: list[float | None] = []
        self.grad_norms: list[float | None] = []
        self.gradients_sha256: list[str] = []
        self._clock = Clock(device)
        self._loss = torch.zeros(())

    def step(self, round_number: int = 0) -> StepSample:
        """Take one step, and look at its loss and gradients when it is timed."""
        sample = self._timed(round_number)
        gradients = _gradients(self.model)
        self.losses.append(finite(float(self._loss)))
        self.grad_norms.append(finite(_norm(list(gradients.values()))))
        self.gradients_sha256.append(_sha256(gradients))
        self.optimizer.zero_grad()
        return sample

    def followed_step(self) -> list[tuple[float, int]]:
        """Take one step and follow what it holds; not on a GPU, whose allocator tells the peak of every step."""
        if self.device.type == "cuda":
            return []
        static = static_bytes(self.model, OPTIMIZER)
        inputs = sum(tensor.nbytes for tensor in tensors_in(self.batch))
        return memory.follow_on_cpu(lambda: self._timed(0), static.total - static.gradients + inputs)

    def _timed(self, round_number: int) -> StepSample:
        _seed(self.choices.seed + len(self.losses) + 1)
        self._clock.clear()
        started = time.perf_counter()
        self._clock.mark()
        loss = self._forward()
        self._clock.mark()
        loss.backward()
        self._clock.mark()
        self.optimizer.step()
        self._clock.mark()
        phases = [milliseconds / 1e3 for milliseconds in self._clock.milliseconds()]
        seconds = time.perf_counter() - started
        self._loss = loss.detach()
        return StepSample(round_number, len(self.losses) + 1, seconds, *phases)

    def _forward(self) -> Tensor:
        with _autocast(self.choices, self.device):
            if self.ledger is not None:
                return self._loss_of(called_with(self.model, self.batch))
            with record(self.model) as self.ledger:
                output = called_with(self.model, self.batch)
            return self._loss_of(output)

    def _loss_of(self, output: Any) -> Tensor:
        """The model's own loss, or the mean of its output's squares."""
        try:
            return loss_of(output, None)
        except VerificationError:
            self.has_loss = False
        parts = [part.float().square().mean() for part in tensors_in(output) if part.requires_grad]
        if not parts:
            raise VerificationError(f"{type(self.model).__name__} returns nothing that has a gradient")
        return torch.stack(parts).mean()


def _measured(
    job: ModelJob, run: ModelRun, plan: AnyModelPlan | None, predicted: _Prediction | None
) -> TrainMeasurement:
    for _ in range(job.warmup_steps):
        run.step()
    reset_peak_bytes(run.device)
    samples = tuple(run.step(job.round) for _ in range(job.steps))
    weights = _sha256(dict(run.model.named_parameters()))
    peak, timeline = memory.peaks(run.device), run.followed_step() if job.round == 1 else []
    if peak.allocated is None and timeline:
        peak = replace(peak, allocated=max(held for _, held in timeline))
    assert run.ledger is not None  # since the first step
    return TrainMeasurement(
        device=device_name(run.device),
        dtype=_dtype(run),
        parameters=sum(weight.numel() for weight in run.model.parameters()),
        peak_flops=None,
        torch_version=torch.__version__,
        model_flops=None,
        hardware_flops=None,
        saved=_saved_bytes(run.ledger, predicted.ledger if predicted else None),
        static=static_bytes(run.model, OPTIMIZER),
        peak=peak,
        predicted_peak_bytes=None,
        samples=samples,
        losses=tuple(run.losses),
        grad_norms=tuple(run.grad_norms),
        weights_sha256=weights,
        timeline=memory.thin_out(timeline),
        gradients_sha256=tuple(run.gradients_sha256),
        model=_facts(run),
        notes=tuple(_notes(run, plan, predicted)),
    )


def _facts(run: ModelRun) -> ModelFacts:
    return ModelFacts(
        kind=type(run.model).__name__,
        layers=len(set(layer_paths(run.model).values()) - {""}),
        batch=describe_batch(run.batch),
        tokens=_tokens(run.batch),
        has_loss=run.has_loss,
        optimizer=f"torch.optim.AdamW, lr {LEARNING_RATE:g}",
    )


def _tokens(batch: Any) -> int | None:
    """Elements of input_ids, or of the first argument where it is one of integers."""
    args, kwargs = arguments_of(batch)
    first = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(first, Tensor) or first.dtype not in (torch.int32, torch.int64):
        return None
    return first.numel()


def _notes(run: ModelRun, plan: AnyModelPlan | None, predicted: _Prediction | None) -> list[str]:
    notes = []
    if not run.has_loss:
        notes.append("the model returns no loss: the mean of its output's squares is taken")
    if predicted is not None and predicted.ledger is None:
        notes.append(f"bytes are not predicted, since the model does not run without values ({predicted.reason})")
    if plan is not None and plan.departed:
        notes.append("its forward passes differ from step to step, and are recorded anew, which takes longer")
    if plan is not None and plan.unproved:
        notes.append(f"saved since running it again gave other bits: {', '.join(plan.unproved)}")
    return notes


def _dtype(run: ModelRun) -> str:
    dtype = str(next(run.model.parameters()).dtype).removeprefix("torch.")
    autocast = run.choices.autocast
    return f"{dtype}, autocast {autocast}" if autocast else dtype


def _saved_bytes(measured: Ledger, predicted: Ledger | None) -> SavedBytes:
    return SavedBytes(
        predicted=predicted.total if predicted else None,
        measured=measured.total,
        predicted_per_layer=predicted.by_layer() if predicted else {},
        measured_per_layer=measured.by_layer(),
        predicted_by_name=_by_name(predicted) if predicted else {},
        measured_by_name=_by_name(measured),
    )


def _by_name(ledger: Ledger) -> dict[str, int]:
    totals: dict[str, int] = {}
    for row in ledger.rows:
        totals[row.name] = totals.get(row.name, 0) + row.bytes
    return totals


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def _norm(gradients: Sequence[Tensor]) -> float:
    """Of all elements, summed in fp64."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0


def _sha256(tensors: dict[str, Tensor]) -> str:
    """Of names and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
