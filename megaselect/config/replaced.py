"""Settings of earlier versions that others took the place of: what is said of them, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dotted name -> the setting in its place.
REPLACED = {"training.eval_batches": "training.eval_samples"}

_EXPLAINED = {
    "training.eval_batches": "which counts samples, whatever the micro batch: eval_batches x micro_batch_size of them",
}


def explain_replaced(name: str) -> str | None:
    """What to set in the place of a setting by this dotted name; None where it never was one."""
    return f"{REPLACED[name]} is in its place, {_EXPLAINED[name]}" if name in REPLACED else None


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The config that an earlier version saved with a run, in this version's settings. What it cannot read stays."""
    sections, training = dict(saved), saved.get("training")
    if isinstance(training, Mapping) and "eval_batches" in training:
        training = dict(training)
        counts = training.pop("eval_batches"), training.get("micro_batch_size")
        if all(type(count) is int for count in counts) and "eval_samples" not in training:
            training["eval_samples"] = counts[0] * counts[1]
            sections["training"] = training
    return sections
