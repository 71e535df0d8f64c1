"""Rules that one field's type cannot express. Each raises SettingError with the values and what to do instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from megaselect.config.blend import parse_blend
from megaselect.config.layers import parse_layers
from megaselect.errors import ConfigError
from megaselect.recompute_modules import MODULES
from megaselect.units import parse_duration, parse_size, parse_steps

if TYPE_CHECKING:
    from megaselect.config.schema import Config, DataConfig, LoggingConfig, ModelConfig, RecomputeConfig, TrainingConfig

# Dropout sites number the heads of a layer from 0 and the layer's other sites from 4000 (docs/dropout-mask.md).
MAX_HEADS = 4000
# Plans list the layers one by one. The deepest models have hundreds.
MAX_LAYERS = 100_000

# The default of data.valid_fraction. Another one is the user's wish, and is not to be ignored without a word.
VALID_FRACTION = 0.05

SETTINGS_OF_MODE = {
    "none": (),
    "selective": ("modules", "layers"),
    "full": ("method", "num_layers", "layers"),
    "auto": ("memory",),
}


class SettingError(ConfigError):
    """A refused value or contradiction; `names` are the dotted names of the settings that take part in it."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


def check_model(model: ModelConfig) -> None:
    """Heads divide the hidden size; each dropout probability is one that the masks can have."""
    heads, hidden = model.num_attention_heads, model.hidden_size
    if hidden % heads:
        divisors = [n for n in range(1, min(hidden, MAX_HEADS) + 1) if hidden % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - heads))
        raise SettingError(
            f"model.num_attention_heads ({heads}) must divide model.hidden_size ({hidden}); "
            f"use {nearest} heads, or a hidden size such as {max(1, hidden // heads) * heads}",
            "model.num_attention_heads",
            "model.hidden_size",
        )
    for name in ("dropout_p", "attention_dropout_p", "hidden_dropout_p"):
        probability = getattr(model, name)
        if probability is not None:
            _check_dropout(f"model.{name}", probability)
    attention_dropout_p = model.dropout_p if model.attention_dropout_p is None else model.attention_dropout_p
    if model.attention == "sdpa" and attention_dropout_p > 0:
        raise SettingError(
            f"model.attention sdpa drops nothing, but the attention's dropout is {attention_dropout_p}: "
            "use --attention fused, or --model.attention-dropout-p 0",
            "model.attention",
            "model.attention_dropout_p",
            "model.dropout_p",
        )


def _check_dropout(name: str, probability: float) -> None:
    """Masks drop with probability t/256, t = floor(256 p + 0.5): the same t as kernels/dropout_mask.py."""
    if not 0 <= probability < 1:
        raise SettingError(f"{name} = {probability} is outside [0, 1); use a value such as 0.1, or 0 for none", name)
    threshold = math.floor(256 * probability + 0.5)
    if threshold == 0 and probability > 0:
        raise SettingError(f"{name} = {probability} rounds to 0/256 and drops nothing; use 0, or 0.002 or more", name)
    if threshold == 256:
        raise SettingError(f"{name} = {probability} rounds to 256/256 and drops everything; use 0.998 or less", name)


def check_data(data: DataConfig) -> None:
    """The blend is pairs of weight and dataset; no split is asked for in two ways, and none would be ignored."""
    _located(lambda: parse_blend(data.blend), "data.blend")
    if data.blend and data.prefix is not None:
        raise SettingError(
            f"data.blend and data.prefix ({data.prefix}) both say what to train on; remove one of them",
            "data.blend",
            "data.prefix",
        )
    if data.valid_fraction != VALID_FRACTION:
        if data.valid_prefix is not None:
            raise SettingError(
                f"data.valid_fraction ({data.valid_fraction}) has no effect beside data.valid_prefix "
                f"({data.valid_prefix}); remove one of them",
                "data.valid_fraction",
                "data.valid_prefix",
            )
        if data.prefix is None and not data.blend:
            raise SettingError(
                f"data.valid_fraction ({data.valid_fraction}) has no effect on the default corpus, which brings its "
                "own validation split; remove it, or set data.valid_prefix, or data.prefix to a dataset of your own",
                "data.valid_fraction",
                "data.prefix",
            )
    _check_test_split(data)


def _check_test_split(data: DataConfig) -> None:
    names = ("data.test_fraction", "data.test_prefix", "data.valid_fraction")
    if data.test_fraction and data.test_prefix is not None:
        raise SettingError(
            f"data.test_fraction ({data.test_fraction}) has no effect beside data.test_prefix ({data.test_prefix}); "
            "remove one of them",
            *names,
        )
    valid_fraction = 0.0 if data.valid_prefix is not None else data.valid_fraction
    if valid_fraction + data.test_fraction >= 1:
        raise SettingError(
            f"data.valid_fraction ({valid_fraction}) and data.test_fraction ({data.test_fraction}) leave nothing to "
            "train on; lower them",
            *names,
        )


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
        _located(lambda: parse_duration(str(training.exit_after), "training.exit_after"), "training.exit_after")


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


def check_recompute(recompute: RecomputeConfig) -> None:
    """No setting is given that the mode would ignore, and those of the mode fit each other."""
    for name in ("modules", "method", "num_layers", "layers", "memory"):
        value = getattr(recompute, name)
        if name in recompute.model_fields_set and value is not None and name not in SETTINGS_OF_MODE[recompute.mode]:
            modes = [mode for mode, names in SETTINGS_OF_MODE.items() if name in names]
            raise SettingError(
                f"recompute.{name} works with mode {' or '.join(modes)} only, but recompute.mode is {recompute.mode}; "
                f"remove it, or set the mode (--recompute {modes[0]})",
                f"recompute.{name}",
                "recompute.mode",
            )
    if not recompute.modules:
        raise SettingError(
            "recompute.modules is empty, so that selective would keep everything; "
            f"name one of {', '.join(MODULES)}, or all, or set the mode to none",
            "recompute.modules",
        )
    repeated = [name for name in recompute.modules if recompute.modules.count(name) > 1]
    if repeated:
        raise SettingError(f"recompute.modules names {repeated[0]} twice; name it once", "recompute.modules")
    _check_method(recompute)
    if recompute.memory is not None:
        _located(lambda: parse_size(str(recompute.memory), "recompute.memory"), "recompute.memory")


def check_logging(logging: LoggingConfig) -> None:
    """The steps to profile are steps."""
    if logging.profile is not None:
        _located(lambda: parse_steps(str(logging.profile), "logging.profile"), "logging.profile")


def _located(parse: Callable[[], object], *names: str) -> None:
    """What `parse` refuses, as an error of the settings `names`."""
    try:
        parse()
    except ConfigError as error:
        raise SettingError(str(error), *names) from None


def _check_method(recompute: RecomputeConfig) -> None:
    names = ("recompute.method", "recompute.num_layers")
    if recompute.mode != "full":
        return
    if recompute.method == "block" and recompute.num_layers is None:
        raise SettingError(
            "recompute.method block needs recompute.num_layers, how many layers it recomputes; "
            "set it (--recompute-num-layers N), or use uniform for all layers",
            *names,
        )
    if recompute.method == "sqrt" and recompute.num_layers is not None:
        raise SettingError(
            f"recompute.method sqrt chooses the layers per checkpoint itself, but recompute.num_layers is "
            f"{recompute.num_layers}; remove it, or use method uniform",
            *names,
        )


def check_across_sections(config: Config) -> None:
    """What recompute and data ask of the model exists in the model."""
    recompute, layers = config.recompute, config.model.num_layers
    if recompute.num_layers is not None and recompute.num_layers > layers:
        raise SettingError(
            f"recompute.num_layers ({recompute.num_layers}) is more than model.num_layers ({layers}); "
            f"use {layers} or fewer",
            "recompute.num_layers",
            "model.num_layers",
        )
    profile, last_step = config.logging.profile, config.training.max_steps
    if profile is not None and parse_steps(profile, "logging.profile")[0] > last_step:
        raise SettingError(
            f"logging.profile ({profile}) begins after training.max_steps ({last_step}); profile earlier steps, or "
            "train longer",
            "logging.profile",
            "training.max_steps",
        )
    if recompute.layers is not None:
        _located(lambda: parse_layers(str(recompute.layers), layers), "recompute.layers", "model.num_layers")
