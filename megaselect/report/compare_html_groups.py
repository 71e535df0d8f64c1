"""What the figures of memory add up: kinds of tensors, and predicted bytes at other sequence lengths. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from megaselect.comparison.result import Context, TrainedSetting
from megaselect.config import Config
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan

LONGEST_SEQUENCE = 32_768
SHORTENINGS, LENGTHENINGS = 2, 6  # powers of two around the run's own sequence length
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# Group of the memory figure -> the tensors it holds, by the names of docs/recompute.md. "" takes all others.
_STORED = {
    "scores, probs": ("scores", "probs", "dropped probs", "softmax statistics"),
    "dropout masks": (
        "attention dropout mask",
        "projection dropout mask",
        "MLP dropout mask",
        "embedding dropout mask",
    ),
    "q, k, v, context": ("q, k, v", "context"),
    "MLP": ("fc1 output", "gelu output"),
    "layernorms": ("ln1 output", "ln2 output", "ln1 statistics", "ln2 statistics", "ln2 input"),
    "block inputs": ("block input",),
    "outside the layers": (),
}
_OTHER = "outside the layers"
_LAYERS = "in the layers"  # of a model of anybody's, whose tensors have names of its own
# Greys for what every setting holds, Okabe and Ito's colours for what is saved for backward.
GROUP_COLOURS = {
    "parameters": "#5a5a5a",
    "master weights": "#8a8a8a",
    "optimizer": "#a9a9a9",
    "gradients": "#c8c8c8",
    "scores, probs": "#d55e00",
    "dropout masks": "#e69f00",
    "q, k, v, context": "#0072b2",
    "MLP": "#56b4e9",
    "layernorms": "#cc79a7",
    "block inputs": "#009e73",
    "in the layers": "#56b4e9",
    "outside the layers": "#b8a800",
}


def static_groups(setting: TrainedSetting) -> dict[str, int]:
    """Group -> bytes of what does not depend on the batch."""
    static = setting.static
    return {
        "parameters": static.weights,
        "master weights": static.master_weights,
        "optimizer": static.optimizer,
        "gradients": static.gradients,
    }


def saved_groups(setting: TrainedSetting) -> dict[str, int]:
    """Group -> measured bytes that one micro-batch saves for backward."""
    if setting.attention is None:
        outside = setting.saved.measured_per_layer.get("", 0)
        return {_LAYERS: setting.saved.measured - outside, _OTHER: outside}
    group_of = {name: group for group, names in _STORED.items() for name in names}
    if setting.attention != "unfused":  # otherwise it is the loss's
        group_of["log-sum-exp"] = "scores, probs"
    totals = dict.fromkeys(_STORED, 0)
    for name, count in setting.saved.measured_by_name.items():
        totals[group_of.get(name, _OTHER)] += count
    return totals


def allocated_peaks(settings: Sequence[TrainedSetting]) -> list[int]:
    """Measured bytes of tensors at each setting's peak; none at all where one of the settings has none."""
    peaks = [setting.peak.allocated for setting in settings if setting.peak.allocated is not None]
    return peaks if len(peaks) == len(settings) else []


def sequence_lengths(context: Context) -> list[int]:
    """Powers of two times the run's own length, to LONGEST_SEQUENCE or the run's own."""
    own = context.config["model"]["seq_length"]
    longest = max(LONGEST_SEQUENCE, own)
    lengths = [own * 2**power // 2**SHORTENINGS for power in range(SHORTENINGS + LENGTHENINGS + 1)]
    return [length for length in lengths if 1 <= length <= longest]


def saved_by_sequence(context: Context, setting: TrainedSetting, lengths: Sequence[int]) -> list[int]:
    """Predicted bytes of one micro-batch at each sequence length."""
    sections = {name: dict(section) for name, section in context.config.items()}
    sections["recompute"] = setting.recompute
    sections["model"] |= {"attention": setting.attention, "attention_dropout_p": setting.attention_dropout_p}
    config = Config.from_dict(sections)
    shape = LayerShape.of(config, ELEMENT_BYTES[context.dtype])
    plan = make_plan(config.recompute, config.model.num_layers)
    return [saved_bytes(replace(shape, sequence=length), plan) for length in lengths]
