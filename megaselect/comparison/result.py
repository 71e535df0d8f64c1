"""What a comparison found, as frozen dataclasses that go to JSON and back. Bytes are bytes, times seconds.

None means that a figure was not measured: reserved bytes on a CPU, MFU where no peak is on file, and in JSON every
figure of a setting that did not train. Needs no torch.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Tag, TypeAdapter, ValidationError

from megaselect.errors import ComparisonError
from megaselect.prediction.weights import StaticBytes

# Raised when a key changes its meaning or goes; keys that join do not raise it.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Context:
    """What every setting shares, and where and how it was measured.

    config: nested, as Config.to_dict gives it, before a setting's own attention and recompute are laid over it; of a
    model of anybody's, its ModelChoices. config_name: the file's stem, or the model's name. model: of a model of
    anybody's. device, dtype: ready to print. parameters: how many. tokens_per_step: of the global batch; None where it
    is not one of tokens. peak_flops: dense FLOP/s of the device. steps: timed ones a process; warmup_steps run before
    them, untimed. date: ISO 8601, UTC. command: as typed. commit: of the source tree, where there is one.
    """

    config_name: str
    config: dict[str, Any]
    device: str
    dtype: str
    parameters: int
    tokens_per_step: int | None
    peak_flops: float | None
    steps: int
    warmup_steps: int
    rounds: int
    torch_version: str
    megaselect_version: str
    python_version: str
    date: str
    command: str
    commit: str | None
    notes: tuple[str, ...] = ()
    model: ModelFacts | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What there is to say of a model of anybody's. kind: its class. layers: how many of its modules are layers.

    batch, optimizer: ready to print. tokens: in the batch; None where it is not one of tokens. has_loss: whether the
    model returns a loss; else it is the mean of its output's squares.
    """

    kind: str
    layers: int
    batch: str
    tokens: int | None
    has_loss: bool
    optimizer: str


@dataclass(frozen=True)
class SavedBytes:
    """What one micro-batch saves for backward. per_layer: layer or chunk -> bytes; by_name: tensor, over all layers.

    predicted: None, and the other predictions empty, where a model does not run without values.
    """

    predicted: int | None
    measured: int
    predicted_per_layer: dict[str, int]
    measured_per_layer: dict[str, int]
    predicted_by_name: dict[str, int]
    measured_by_name: dict[str, int]


@dataclass(frozen=True)
class PeakBytes:
    """allocated: tensors, by torch's allocator. reserved: taken from the GPU. rss: the process, libraries included."""

    allocated: int | None
    reserved: int | None
    rss: int


@dataclass(frozen=True)
class StepSample:
    """One timed step. round from 1; step from 1, warm-up steps counted. seconds: data and optimizer included."""

    round: int
    step: int
    seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float


@dataclass(frozen=True)
class Spread:
    """Median and 20 and 80 % quantiles."""

    median: float
    q20: float
    q80: float


@dataclass(frozen=True)
class Speed:
    """Over all timed steps of all rounds; rates are taken from the median step.

    backward_seconds includes recomputation. recompute_seconds: what backward takes more than that of none with the same
    attention, the median over rounds; None for none itself. tokens_per_s: None where batches are not of tokens.
    """

    step_seconds: Spread
    forward_seconds: Spread
    backward_seconds: Spread
    optimizer_seconds: Spread
    recompute_seconds: float | None
    tokens_per_s: float | None
    mfu: float | None
    hfu: float | None


@dataclass(frozen=True)
class Agreement:
    """Whether this setting trained as `reference` did. equal: losses, gradient norms and final weights, to the bit;
    of a model of anybody's every gradient of every step as well.

    first_different_step: from 1; None where they agree, or only the final weights differ. loss_differences: this
    setting's loss minus the reference's, step by step; None where a loss is not finite.
    """

    reference: str
    equal: bool
    first_different_step: int | None
    loss_differences: tuple[float | None, ...]


@dataclass(frozen=True)
class TimelinePoint:
    """Bytes of tensors held at a moment of one step, counted from its start."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Setting:
    """What a row says of its setting, whether it trained or not.

    recompute: the config's section, as Config.to_dict gives it. note: in what the row differs from the config, if it
    does. is_peer: it is no setting of ours, but another library's recomputation. A model of anybody's has an attention
    of its own, of which nothing is known: None.
    """

    name: str
    attention: str | None
    attention_dropout_p: float | None
    recompute: dict[str, Any]
    note: str | None = None
    is_peer: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainedSetting(Setting):
    """A row that trained.

    losses, grad_norms: every step, warm-up included; None where not finite. weights_sha256: of the weights after
    the last step. rounds_equal: whether every round trained to the same bits; None where there was one round.
    agreement: with none of the same attention; None for none itself. hardware_flops, model_flops: of one step.
    predicted_peak_bytes: of tensors, to be set beside peak.allocated. largest_micro_batch: None where it was not looked
    for. timeline: of a step after the timed ones. gradients_sha256: of each step's gradients, where
    they were looked at. FLOPs and the predicted peak of a model of anybody's are not known: None.
    """

    failure: None = None
    model_flops: int | None
    hardware_flops: int | None
    saved: SavedBytes
    static: StaticBytes
    peak: PeakBytes
    predicted_peak_bytes: int | None
    speed: Speed
    samples: tuple[StepSample, ...] = ()
    losses: tuple[float | None, ...] = ()
    grad_norms: tuple[float | None, ...] = ()
    weights_sha256: str
    gradients_sha256: tuple[str, ...] = ()
    rounds_equal: bool | None = None
    agreement: Agreement | None = None
    largest_micro_batch: int | None = None
    timeline: tuple[TimelinePoint, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FailedSetting(Setting):
    """A row that did not train, and why."""

    failure: str


def _outcome(row: Any) -> str:
    """Which of the two a row is, as an object or as JSON has it."""
    failure = row.get("failure") if isinstance(row, dict) else getattr(row, "failure", None)
    return "trained" if failure is None else "failed"


SettingResult = Annotated[
    Annotated[TrainedSetting, Tag("trained")] | Annotated[FailedSetting, Tag("failed")], Discriminator(_outcome)
]
# What JSON has for a row that did not train, so that all rows have the same keys.
_NOT_MEASURED = {field.name: None if field.default is MISSING else field.default for field in fields(TrainedSetting)}


@dataclass(frozen=True)
class Comparison:
    """A whole comparison. verdict: what to take from it, in one or two sentences."""

    context: Context
    settings: tuple[SettingResult, ...]
    verdict: str
    format_version: int = FORMAT_VERSION

    @property
    def trained(self) -> list[TrainedSetting]:
        """The rows that trained, in order."""
        return [setting for setting in self.settings if isinstance(setting, TrainedSetting)]

    def setting(self, name: str) -> SettingResult | None:
        """The row of that name, if there is one."""
        return next((setting for setting in self.settings if setting.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values that json.dumps takes."""
        return asdict(self) | {"settings": [_NOT_MEASURED | asdict(setting) for setting in self.settings]}

    @classmethod
    def from_dict(cls, mapping: dict[str, Any]) -> Comparison:
        """The inverse of to_dict. Raises ComparisonError where `mapping` is none of its results."""
        version = mapping.get("format_version")
        if version != FORMAT_VERSION:
            raise ComparisonError(f"format_version is {version}, this version reads {FORMAT_VERSION}: compare again")
        try:
            return TypeAdapter(cls).validate_python(mapping)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ComparisonError(f"not a comparison's result: {place}: {first['msg'].lower()}") from None


def write_comparison(comparison: Comparison, path: Path) -> None:
    """As JSON. Raises ComparisonError where the file cannot be written."""
    try:
        path.write_text(to_json(comparison) + "\n", encoding="utf-8")
    except OSError as error:
        raise ComparisonError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def to_json(comparison: Comparison) -> str:
    """Indented JSON without NaN, which no other language reads."""
    return json.dumps(comparison.to_dict(), indent=1, allow_nan=False)


def read_comparison(path: Path) -> Comparison:
    """The comparison that write_comparison wrote. Raises ComparisonError."""
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ComparisonError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ComparisonError(f"{path} is no JSON: {error}") from error
    if not isinstance(mapping, dict):
        raise ComparisonError(f"{path} is no comparison's result: megaselect compare writes one, compare.json")
    return Comparison.from_dict(mapping)
