"""What a model of anybody's keeps for backward in each setting, by runs of a model without values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from megaselect.batches import arguments_of
from megaselect.compatibility import fake_tensors, needs_values
from megaselect.errors import ModelError, RecomputeError, as_line
from megaselect.factories import Factory, batch_for, default_dtype, find_factory, positions_of
from megaselect.ledger import Ledger, record
from megaselect.ledger.layer_paths import layer_paths
from megaselect.planning.any_model import recompute
from megaselect.prediction.weights import StaticBytes
from megaselect.recomputation.tape.settings import SETTINGS
from megaselect.trees import tensors_in

FP32_BYTES = 4
Optimizer = Literal["adamw", "torch-adamw", "none"]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Choices:
    """dtype: torch's default one while the model is made; None: fp32. autocast: what products run in.

    batch_size, seq_length: of token batches; None: 1, and as many as the config allows. measure: run what cannot be
    predicted. optimizer: adamw has fp32 moments, and fp32 master weights beside those of 16 bit; torch-adamw moments
    in the weights' dtype, as torch.optim.AdamW.
    """

    dtype: torch.dtype | None = None
    autocast: torch.dtype | None = None
    batch_size: int | None = None
    seq_length: int | None = None
    optimizer: Optimizer = "adamw"
    measure: bool = False


@dataclass(frozen=True)
class SettingEstimate:
    """ledger: what is saved for backward; None where that is not known, with the reason."""

    setting: str
    ledger: Ledger | None
    is_measured: bool = False
    reason: str = ""

    @property
    def per_layer(self) -> int:
        """Of the fullest layer; 0 where no module is a layer."""
        assert self.ledger is not None
        return max((count for layer, count in self.ledger.by_layer().items() if layer), default=0)

    @property
    def outside(self) -> int:
        """What lies outside the layers."""
        assert self.ledger is not None
        return self.ledger.by_layer().get("", 0)


@dataclass(frozen=True)
class ModelEstimate:
    """Of one forward pass of `batch`. static: weights with buffers. layers: how many modules are layers."""

    name: str
    model: str
    layers: int
    parameters: int
    trainable_parameters: int
    static: StaticBytes
    batch: str
    rows: tuple[SettingEstimate, ...]
    notes: tuple[str, ...]

    def row(self, setting: str) -> SettingEstimate:
        """That of a setting."""
        return next(row for row in self.rows if row.setting == setting)


def estimate_model(name: str, choices: Choices, report: Progress = lambda setting: None) -> ModelEstimate:
    """The model that find_factory finds, in every setting. `report` hears of each setting as it begins.

    Raises ModelError where there is no such model, it cannot be made, or it does not run on its batch.
    """
    subject = _Subject(name, choices)
    rows = []
    for setting in SETTINGS:
        report(setting)
        rows.append(subject.row(setting))
    model, notes = subject.model, list(subject.notes)
    limit, length = positions_of(model), choices.seq_length
    if limit is not None and length is not None and length > limit:
        notes.append(f"--seq-length {length} is more than the {limit} positions of the model's config.")
    return ModelEstimate(
        name=name,
        model=type(model).__name__,
        layers=len(set(layer_paths(model).values()) - {""}),
        parameters=sum(weight.numel() for weight in model.parameters()),
        trainable_parameters=sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        static=static_bytes(model, choices.optimizer),
        batch=describe_batch(subject.batch),
        rows=tuple(rows),
        notes=tuple(notes),
    )


class _Subject:
    """A model and its batch: without values where it can be made so, and with values where that is asked for."""

    def __init__(self, name: str, choices: Choices) -> None:
        self.name, self.choices, self.notes = name, choices, list[str]()
        self.factory: Factory = find_factory(name)
        self.is_fake = True
        try:
            with fake_tensors():
                self.model, self.batch = self._made()
        except ModelError as error:
            self.model, self.batch = self._made()  # where the mistake is the user's, it is told here again
            self.is_fake = False
            said = as_line(error.__cause__ or error)
            self.notes.append(f"Its weights are in memory: the model is not made without values ({said}).")

    def row(self, setting: str) -> SettingEstimate:
        try:
            return SettingEstimate(setting, self._predicted(setting))
        except RecomputeError as error:
            cause = error.__cause__ or error
        if self.choices.measure:
            return SettingEstimate(setting, self._measured(setting), is_measured=True)
        if needs_values(cause):
            return SettingEstimate(setting, None, reason=as_line(cause))
        raise ModelError(
            f"{type(self.model).__name__} does not run on its batch ({describe_batch(self.batch)}): {as_line(cause)}; "
            "it ran without values: --measure runs it with them"
        ) from cause

    def _predicted(self, setting: str) -> Ledger:
        plan = recompute(self.model, setting)
        args, kwargs = arguments_of(self.batch)
        try:
            with self._autocast():
                return plan.ledger(*args, **kwargs)
        finally:
            plan.undo()

    def _measured(self, setting: str) -> Ledger:
        if self.is_fake:
            self.model, self.batch = self._made()
            self.is_fake = False
        plan = recompute(self.model, setting)
        args, kwargs = arguments_of(self.batch)
        try:
            with self._autocast(), torch.enable_grad(), record(self.model) as rows:
                self.model(*args, **kwargs)
        except Exception as error:  # whatever the model raises is what its user wants to know
            said = f"does not run on its batch ({describe_batch(self.batch)}): {as_line(error)}"
            raise ModelError(f"{type(self.model).__name__} {said}") from error
        finally:
            plan.undo()
        return rows

    def _made(self) -> tuple[nn.Module, Any]:
        choices = self.choices
        with default_dtype(choices.dtype):
            made = self.factory()
            return made.model, batch_for(self.name, made, choices.batch_size, choices.seq_length)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        dtype = self.choices.autocast
        return contextlib.nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def static_bytes(model: nn.Module, optimizer: Optimizer) -> StaticBytes:
    """What training holds whatever the batch: weights with buffers, gradients as wide as weights, the optimizer's."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    masters = moments = 0
    for weight in trained:
        is_narrow = weight.element_size() < FP32_BYTES
        if optimizer == "adamw":
            masters += FP32_BYTES * weight.numel() if is_narrow else 0
            moments += 2 * weight.numel() * max(FP32_BYTES, weight.element_size())
        elif optimizer == "torch-adamw":
            moments += 2 * weight.nbytes
    weights = sum(part.nbytes for part in (*model.parameters(), *model.buffers()))
    return StaticBytes(weights, sum(weight.nbytes for weight in trained), masters, moments)


def describe_batch(batch: Any) -> str:
    """`input_ids 1x2048 int64, labels 1x2048 int64`, or sizes alone."""
    args, kwargs = arguments_of(batch)
    parts = [*(("", part) for part in args), *kwargs.items()]
    return ", ".join(f"{key} {_size(tensor)}".strip() for key, part in parts for tensor in tensors_in(part))


def _size(tensor: torch.Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def as_data(estimate: ModelEstimate, rows_of: Sequence[str] = ()) -> dict[str, Any]:
    """For JSON. rows_of: settings whose rows are listed, storage by storage. Others script against these keys."""
    return {
        "name": estimate.name,
        "model": estimate.model,
        "layers": estimate.layers,
        "parameters": estimate.parameters,
        "trainable_parameters": estimate.trainable_parameters,
        "static_bytes": asdict(estimate.static),
        "batch": estimate.batch,
        "settings": {row.setting: _row_data(row) for row in estimate.rows},
        "rows": {name: ledger.as_dicts() for name in rows_of if (ledger := estimate.row(name).ledger)},
        "notes": list(estimate.notes),
    }


def _row_data(row: SettingEstimate) -> dict[str, Any]:
    if row.ledger is None:
        return {"saved_bytes": None, "saved_bytes_by_layer": None, "is_measured": False, "reason": row.reason}
    by_layer = row.ledger.by_layer()
    return {
        "saved_bytes": row.ledger.total,
        "saved_bytes_by_layer": {layer or "outside": count for layer, count in by_layer.items()},
        "is_measured": row.is_measured,
        "reason": None,
    }
