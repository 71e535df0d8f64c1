"""A run's config for benchmarks, read from configs/*.yaml with PyYAML alone.

The schema in megaselect.config needs pydantic, which a machine lent for its GPU may not have. These classes carry the
attributes that model, recompute and optimizer read, with the schema's defaults; a test compares them field by field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megaselect.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
VOCABULARY_MULTIPLE = 128
MODULES = ("softmax", "dropout", "core_attn", "layernorm", "gelu")
ATTENTIONS = ("unfused", "fused", "sdpa")
BASELINES = ("plain", "plain-compiled", "huggingface", "megatron")


@dataclass(frozen=True)
class ModelSettings:
    """LayerShape of the GPT model; what is None follows from the other fields."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    seq_length: int
    vocab_size: int = 4096  # of the default corpus, as where no data names another
    dropout_p: float = 0.1
    ffn_hidden_size: int | None = None
    attention_dropout_p: float | None = None
    hidden_dropout_p: float | None = None
    attention: str = "unfused"
    init_std: float = 0.02
    layernorm_epsilon: float = 1e-5
    kernel_backend: str = "auto"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(f"{self.num_attention_heads} heads do not divide hidden size {self.hidden_size}")
        derived = {"ffn_hidden_size": 4 * self.hidden_size}
        derived |= dict.fromkeys(("attention_dropout_p", "hidden_dropout_p"), self.dropout_p)
        for name, value in derived.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


@dataclass(frozen=True)
class TrainingSettings:
    """Of the schema's section, what a single step depends on."""

    micro_batch_size: int = 8
    lr: float = 3e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_grad: float = 1.0
    seed: int = 1234
    compile: bool = False
    loss_chunk_tokens: int | None = None


@dataclass(frozen=True)
class RecomputeSettings:
    """What is saved for backward and what is computed again, in every layer."""

    mode: str = "none"
    modules: tuple[str, ...] = ("softmax", "dropout")
    method: str = "uniform"
    num_layers: int | None = None
    layers: str | None = None

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """All layers: benchmarks do not restrict a mode to some."""
        return tuple(range(num_layers))

    def model_copy(self, update: Mapping[str, Any]) -> RecomputeSettings:
        """A copy with other values, by the name that pydantic gives it."""
        return dataclasses.replace(self, **update)


# What --recompute takes, by the names that reports use.
RECOMPUTE = {
    "none": RecomputeSettings(),
    "selective": RecomputeSettings("selective"),
    "dropout": RecomputeSettings("selective", ("dropout",)),
    "core_attn": RecomputeSettings("selective", ("core_attn", "dropout")),
    "layernorm": RecomputeSettings("selective", ("core_attn", "dropout", "layernorm")),
    "all": RecomputeSettings("selective", MODULES),
    "full": RecomputeSettings("full"),
}


@dataclass(frozen=True)
class Setting:
    """One way to compute attention and one of what is kept."""

    attention: str
    recompute: str
    compiled: bool = False

    @property
    def label(self) -> str:
        """As tables show it: `fused all`, `unfused none, compiled`."""
        return f"{self.attention} {self.recompute}{', compiled' if self.compiled else ''}"


@dataclass(frozen=True)
class BenchConfig:
    """name: what reports call it. own_length: the sequence length that its file names, whatever it runs with."""

    name: str
    model: ModelSettings
    training: TrainingSettings
    recompute: RecomputeSettings = RecomputeSettings()
    own_length: int | None = None

    def of(self, setting: Setting) -> BenchConfig:
        """The same model and batch under a setting. sdpa has no attention dropout; the hidden dropout stays."""
        dropout_p = 0.0 if setting.attention == "sdpa" else self.model.attention_dropout_p
        return dataclasses.replace(
            self,
            model=dataclasses.replace(self.model, attention=setting.attention, attention_dropout_p=dropout_p),
            training=dataclasses.replace(self.training, compile=setting.compiled),
            recompute=RECOMPUTE[setting.recompute],
        )

    def sized(self, sequence: int | None = None, micro_batch: int | None = None) -> BenchConfig:
        """With another sequence length or micro-batch size, where given."""
        model = self.model if sequence is None else dataclasses.replace(self.model, seq_length=sequence)
        training = self.training
        if micro_batch is not None:
            training = dataclasses.replace(training, micro_batch_size=micro_batch)
        return dataclasses.replace(self, model=model, training=training)


def read_config(name: str, overrides: Mapping[str, Any] | None = None) -> BenchConfig:
    """configs/NAME.yaml, or the YAML file that `name` is a path of. overrides: dotted names, model.* or training.*.

    Raises ConfigError for a file that is not there or is no config, and for unknown names.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        known = ", ".join(sorted(file.stem for file in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"cannot read the config {path}: {type(error).__name__}; in configs/: {known}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ConfigError(f"{path} has no section `model`")
    sections = {"model": dict(content["model"]), "training": dict(content.get("training") or {})}
    for dotted, value in (overrides or {}).items():
        section, _, field = dotted.partition(".")
        if section not in sections or field not in _fields(section):
            raise ConfigError(f"unknown setting {dotted}")
        sections[section][field] = value
    try:
        model = ModelSettings(**sections["model"])
    except TypeError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('ModelSettings.__init__() ')}") from None
    known = {field: value for field, value in sections["training"].items() if field in _fields("training")}
    return BenchConfig(path.stem, model, TrainingSettings(**known), own_length=model.seq_length)


def _fields(section: str) -> set[str]:
    classes = {"model": ModelSettings, "training": TrainingSettings}
    return {field.name for field in dataclasses.fields(classes[section])}
