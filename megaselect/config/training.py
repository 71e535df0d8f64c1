"""Batches, optimizer, schedule and checkpoints: section `training`, and its rules."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megaselect.config.section import Section
from megaselect.config.setting_error import SettingError, located
from megaselect.units import parse_duration


class TrainingConfig(Section):
    """Batches, optimizer, schedule and checkpoints."""

    micro_batch_size: int = Field(8, ge=1, description="samples per forward pass")
    global_batch_size: int = Field(8, ge=1, description="samples per step; a multiple of the micro batch")
    max_steps: int = Field(500, ge=1, description="optimizer steps in the whole run")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="compute dtype; auto: bf16 on a GPU, fp32 on a CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the run computes; auto: the GPU where there is one"
    )
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
    compile: bool = Field(False, description="compile each layer by torch.compile, in the first step")
    loss_chunk_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens whose logits exist at a time, computed again in backward; none: all at once, and kept",
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
    sample_tokens: int = Field(
        64, ge=0, description="tokens of sample text at the end, blanks not counted; 0: no sample"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_training(self)
        return self


def check_training(training: TrainingConfig) -> None:
    """The global batch is whole micro batches; the learning rate falls."""
    micro, total = training.micro_batch_size, training.global_batch_size
    if total % micro:
        below = total // micro * micro
        nearest = f"{below} or {below + micro}" if below else f"{micro}"
        raise SettingError(
            f"training.global_batch_size ({total}) must be a multiple of training.micro_batch_size ({micro}); "
            f"use a global batch of {nearest}",
            "training.global_batch_size",
            "training.micro_batch_size",
        )
    if training.min_lr > training.lr:
        raise SettingError(
            f"training.min_lr ({training.min_lr}) is more than training.lr ({training.lr}), which it decays from; "
            "lower min_lr",
            "training.min_lr",
            "training.lr",
        )
    _check_decay(training)
    if training.exit_after is not None:
        located(lambda: parse_duration(str(training.exit_after), "training.exit_after"), "training.exit_after")


def _check_decay(training: TrainingConfig) -> None:
    """Settings of the decay have an effect, and the parts of the schedule do not overlap."""
    warmup, decay, total = training.warmup_steps, training.decay_steps, training.max_steps
    if decay is None:
        return
    if training.schedule == "constant":
        raise SettingError(
            f"training.decay_steps ({decay}) has no effect with training.schedule constant; "
            "remove it, or choose cosine, linear or wsd",
            "training.decay_steps",
            "training.schedule",
        )
    # The other schedules decay from the end of the warm-up, and a run may well stop before they are done.
    if training.schedule == "wsd" and warmup + decay > total:
        raise SettingError(
            f"training.warmup_steps ({warmup}) and training.decay_steps ({decay}) do not fit into "
            f"training.max_steps ({total}) with schedule wsd, which decays at the end; lower them",
            "training.decay_steps",
            "training.warmup_steps",
            "training.max_steps",
        )
