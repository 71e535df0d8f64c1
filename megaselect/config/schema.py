"""The schema. Each field's description is also its line in `--help`; `off` is what the word off means for it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from megaselect.config import checks
from megaselect.config.blend import BlendWords
from megaselect.config.format_value import one_line_errors
from megaselect.config.layers import parse_layers
from megaselect.config.messages import explain
from megaselect.config.origins import Origins, merge
from megaselect.config.section import Section
from megaselect.config.shipped import find_config
from megaselect.config.yaml_file import read_yaml
from megaselect.recompute_modules import MODULES

if TYPE_CHECKING:
    ModuleName = str
else:  # from the declarations, which no type checker can read
    ModuleName = Literal[MODULES]

VOCABULARY_MULTIPLE = 128
# Settings of the model that follow others, or the data, where they are left out.
FOLLOWING = ("ffn_hidden_size", "vocab_size", "attention_dropout_p", "hidden_dropout_p")


class ModelConfig(Section):
    """LayerShape of the GPT model."""

    num_layers: int = Field(ge=1, le=checks.MAX_LAYERS, description="transformer layers")
    hidden_size: int = Field(ge=1, description="width of the residual stream")
    num_attention_heads: int = Field(ge=1, le=checks.MAX_HEADS, description="heads; must divide the hidden size")
    ffn_hidden_size: int | None = Field(None, ge=1, description="width inside the MLP; none: 4 x hidden size")
    seq_length: int = Field(ge=1, description="tokens per training sample")
    vocab_size: int | None = Field(None, ge=1, description="rows of the embedding table; none: as the data's tokenizer")
    dropout_p: float = Field(0.1, description="dropout probability, in steps of 1/256")
    attention_dropout_p: float | None = Field(None, description="dropout after softmax; none: the same as dropout-p")
    hidden_dropout_p: float | None = Field(None, description="dropout elsewhere; none: the same as dropout-p")
    attention: Literal["unfused", "fused", "sdpa"] = Field(
        "unfused",
        description="how core attention is computed: unfused keeps scores or probs; fused never writes them, with the "
        "same dropout masks; sdpa is torch's, without dropout",
    )
    init_std: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    layernorm_epsilon: float = Field(1e-5, gt=0, description="added to the variance in layernorm")
    kernel_backend: Literal["auto", "triton", "torch"] = Field(
        "auto", description="who runs the fused ops; auto: triton on a GPU, torch on a CPU"
    )

    @property
    def padded_vocab_size(self) -> int:
        """The next multiple of 128, which matrix products want."""
        return -(-self.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @model_validator(mode="after")
    def _fill_and_check(self) -> Self:
        checks.check_model(self)
        filled = {
            "ffn_hidden_size": 4 * self.hidden_size,
            "attention_dropout_p": self.dropout_p,
            "hidden_dropout_p": self.dropout_p,
        }
        for name, value in filled.items():
            if getattr(self, name) is None:
                self.fill(name, value)
        return self

    def fill(self, name: str, value: float) -> None:
        """Set a field that was left out, without counting it as set.

        to_dict gives None again, so that a later override of what it follows, such as hidden_size, still reaches it.
        """
        self.__dict__[name] = value
        self.model_fields_set.discard(name)


class DataConfig(Section):
    """Where the tokens come from."""

    prefix: str | None = Field(None, description="indexed dataset to train on; none: the default corpus")
    blend: BlendWords = Field(
        (), description="weights and indexed datasets to mix, such as 0.7 data/a 0.3 data/b, in place of a prefix"
    )
    valid_prefix: str | None = Field(None, description="indexed dataset to evaluate on; none: split off")
    test_prefix: str | None = Field(
        None, description="indexed dataset to evaluate on once, at the end; none: split off"
    )
    tokenizer: str | None = Field(None, description="tokenizer model file; none: the dataset's own")
    valid_fraction: float = Field(checks.VALID_FRACTION, ge=0, lt=1, description="share split off for evaluation")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="share that is split off for the test at the end")
    check: bool = Field(False, description="read every token before training: ids in range, documents whole")
    prefetch: int = Field(2, ge=0, description="batches that a thread reads ahead of the step; 0: none")
    cache_dir: str | None = Field(None, description="none: $MEGASELECT_CACHE or ~/.cache/megaselect")
    vocab_size: int = Field(4096, ge=1, description="size of the default corpus's tokenizer")

    @model_validator(mode="after")
    def _check(self) -> Self:
        checks.check_data(self)
        return self


class TrainingConfig(Section):
    """Batches, optimizer, schedule and checkpoints."""

    micro_batch_size: int = Field(8, ge=1, description="samples per forward pass")
    global_batch_size: int = Field(8, ge=1, description="samples per step; a multiple of the micro batch")
    max_steps: int = Field(500, ge=1, description="optimizer steps in the whole run")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="compute dtype; auto: bf16 on a GPU, fp32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    lr: float = Field(3e-4, gt=0, description="highest learning rate")
    min_lr: float = Field(0.0, ge=0, description="learning rate after the decay")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="shape of the decay; wsd: warm-up, stable, decay"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    decay_steps: int | None = Field(
        None, ge=1, description="steps of decay; none: to the end of the run, or its last fifth with wsd"
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decay of weight matrices")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    clip_grad: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    seed: int = Field(1234, ge=0, lt=2**64, description="seed of weights, data order and dropout masks")
    compile: bool = Field(False, description="compile each layer by torch.compile")
    loss_chunk_tokens: int | None = Field(
        None, ge=1, description="tokens whose logits exist at a time, computed again in backward; none: all, kept"
    )
    deterministic: bool = Field(False, description="refuse operations whose bits vary from run to run")
    eval_interval: int = Field(100, ge=0, description="steps between evaluations; 0: never")
    eval_samples: int = Field(64, ge=1, description="samples per evaluation, whatever the micro batch")
    save_interval: int = Field(100, ge=0, description="steps between checkpoints; 0: never")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: bool = Field(True, description="save and keep the step with the lowest validation loss too")
    resume: str = Field(
        "auto",
        min_length=1,
        json_schema_extra={"off": "none"},
        description="run or checkpoint to continue; auto: the newest checkpoint in the run directory; none: start anew",
    )
    run_dir: str | None = Field(
        None, min_length=1, description="directory of checkpoints, metrics and config; none: a new one in runs/"
    )
    exit_after: str | None = Field(
        None, min_length=1, description="time after which the run saves and stops, such as 8h or 1h30m; none: no limit"
    )
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="what a loss or gradient that is not finite does: stop names its layer and saves the batch; skip "
        "leaves the step out and counts it",
    )
    on_oom: Literal["stop", "step-up"] = Field(
        "stop",
        description="what running out of memory does: stop says what would fit; step-up repeats the step with the next "
        "stronger recompute mode",
    )
    sample_tokens: int = Field(64, ge=0, description="tokens of sample text at the end; 0: none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        checks.check_training(self)
        return self


class RecomputeConfig(Section):
    """What is saved for backward and what is computed again. The losses do not change."""

    mode: Literal["none", "selective", "full", "auto"] = Field(
        "none",
        json_schema_extra={"off": "none"},
        description="none keeps all; selective recomputes softmax and dropout; full recomputes whole layers; auto "
        "plans each layer, the fastest way that fits the memory",
    )
    modules: tuple[ModuleName, ...] = Field(
        ("softmax", "dropout"),
        description=f"what selective recomputes: any of {', '.join(MODULES)}; or all",
    )
    method: Literal["uniform", "block", "sqrt"] = Field(
        "uniform",
        description="where full puts checkpoints: one per chunk of N layers (uniform), one per layer for the first N "
        "layers (block), or one per chunk of about sqrt(layers) (sqrt)",
    )
    num_layers: int | None = Field(None, ge=1, description="the N of method uniform (none: 1) or block")
    layers: str | None = Field(
        None, description="only these layers, such as 0-11, 0,3,5-7, even, odd or skip-first-last; none: all"
    )

    memory: str | None = Field(
        None, min_length=1, description="what a step may hold with auto, such as 24GiB; none: what the device has free"
    )

    @field_validator("modules", mode="before")
    @classmethod
    def _expand_all(cls, value: Any) -> Any:
        """`all`, alone, is every module."""
        return MODULES if value in ("all", ["all"], ("all",)) else value

    @field_validator("layers", mode="before")
    @classmethod
    def _read_single_layer(cls, value: Any) -> Any:
        """`layers: 3` in YAML is a number."""
        return str(value) if type(value) is int else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        checks.check_recompute(self)
        return self

    def selected_layers(self, num_layers: int) -> tuple[int, ...]:
        """Numbers of the layers that the mode applies to, ascending, in a model of `num_layers` layers.

        Raises ConfigError where `layers` names a layer that the model does not have, or none at all.
        """
        return tuple(range(num_layers)) if self.layers is None else parse_layers(self.layers, num_layers)


class LoggingConfig(Section):
    """What is reported, and where."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto",
        json_schema_extra={"off": "disabled"},
        description="Weights & Biases; auto: online where a key is set, offline otherwise",
    )
    wandb_project: str = Field("megaselect", min_length=1, description="project that the runs go to")
    wandb_group: str | None = Field(None, description="group of the run; none: no group")
    log_interval: int = Field(10, ge=1, description="steps between lines on the console")
    tensorboard: bool = Field(False, description="also write TensorBoard's event files into the run directory")
    profile: str | None = Field(
        None, min_length=1, description="steps whose trace torch's profiler writes, such as 10-12; none: none"
    )
    memory_snapshot: bool = Field(False, description="write the GPU allocator's history of the first steps")

    @model_validator(mode="after")
    def _check(self) -> Self:
        checks.check_logging(self)
        return self


class Config(BaseModel):
    """A whole run, frozen and validated. Build it with from_yaml or from_dict: their errors name file and flag."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    recompute: RecomputeConfig = Field(default_factory=RecomputeConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

    @model_validator(mode="after")
    def _fill_and_check(self) -> Self:
        if self.model.vocab_size is None:  # until the data is known: as that of the default corpus
            self.model.fill("vocab_size", self.data.vocab_size)
        checks.check_across_sections(self)
        return self

    @classmethod
    @one_line_errors()
    def from_yaml(
        cls, path: str | Path, overrides: Mapping[str, Any] | None = None, flags: Mapping[str, str] | None = None
    ) -> Self:
        """Read a YAML file, or a shipped config by its name, such as tiny. Raises ConfigError.

        overrides: dotted name -> value; they win over the file. flags: dotted name -> the command-line flag that set
        it, for error messages.
        """
        found = find_config(path)
        return cls.from_dict(read_yaml(found), str(found), overrides, flags)

    @classmethod
    @one_line_errors()
    def from_dict(
        cls,
        mapping: Mapping[str, Any],
        source: str = "config",
        overrides: Mapping[str, Any] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> Self:
        """Validate a nested mapping; `overrides` (dotted names) win over it, `source` names it in a ConfigError.

        An overridden recompute.mode drops the mapping's settings that belong to another mode.
        """
        overrides = overrides or {}
        origins = Origins(source, {name: (flags or {}).get(name, f"override {name}") for name in overrides})
        names = [name for name, _ in iter_settings(cls)]
        try:
            return cls.model_validate(merge(mapping, overrides, origins))
        except ValidationError as error:
            raise explain(error, names, origins) from None
        except checks.SettingError as error:
            raise origins.locate(error) from None

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested values from which from_dict builds an equal config. Filled-in values are None again."""
        sections = self.model_dump(mode="json")
        for name in FOLLOWING:
            if name not in self.model.model_fields_set:
                sections["model"][name] = None
        recompute = sections["recompute"]
        kept = ("mode", *checks.SETTINGS_OF_MODE[self.recompute.mode])
        sections["recompute"] = {name: recompute[name] for name in kept}
        return sections

    def to_yaml(self) -> str:
        """The same as to_dict, as a YAML document that from_yaml reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def iter_settings(schema: type[Config] = Config) -> Iterator[tuple[str, FieldInfo]]:
    """Every setting in the order of the schema: dotted name and pydantic field."""
    for section, section_field in schema.model_fields.items():
        section_class: Any = section_field.annotation
        for name, field in section_class.model_fields.items():
            yield f"{section}.{name}", field
