"""What runs and metrics are called in Weights & Biases and in TensorBoard.

Training, comparisons and dashboards share these names.
"""

from __future__ import annotations

import re
import secrets

from megaselect.training.events import Metrics

# The columns of each are drawn over tokens.
NAMESPACES = ("train", "eval", "mem", "perf", "data")
# Metric of a step, as the trainer spells it -> column of the run's history.
METRIC_NAMES = {
    "step": "step",
    "samples": "samples",
    "tokens": "tokens",
    "loss": "train/loss",
    "loss_difference": "train/loss_difference",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "skipped_steps": "train/skipped_steps",
    "loss_scale": "train/loss_scale",
    "saved_bytes": "mem/saved_bytes",
    "peak_bytes": "mem/peak_bytes",
    "allocated_bytes": "mem/allocated_bytes",
    "reserved_bytes": "mem/reserved_bytes",
    "resident_bytes": "mem/resident_bytes",
    "step_ms": "perf/step_ms",
    "tokens_per_s": "perf/tokens_per_s",
    "mfu": "perf/mfu",
    "hfu": "perf/hfu",
    "data_ms": "perf/data_ms",
    "forward_ms": "perf/forward_ms",
    "backward_ms": "perf/backward_ms",
    "optimizer_ms": "perf/optimizer_ms",
}
# Field of a training run's summary -> its name in the summary of the run.
SUMMARY_NAMES = {
    "steps": "steps",
    "tokens": "tokens",
    "seconds": "perf/seconds",
    "final_loss": "train/final_loss",
    "valid_loss": "eval/final_loss",
    "best_valid_loss": "eval/best_loss",
    "test_loss": "eval/test_loss",
    "skipped_steps": "train/skipped_steps",
    "loss_spikes": "train/loss_spikes",
    "tokens_per_s": "perf/median_tokens_per_s",
    "step_ms": "perf/median_step_ms",
    "mfu": "perf/median_mfu",
    "hfu": "perf/median_hfu",
    "data_share": "perf/median_data_share",
    "saved_bytes": "mem/saved_bytes",
    "peak_bytes": "mem/peak_bytes",
    "sample": "sample",
    "interrupted": "interrupted",
    "stopped_by": "stopped_by",
}
COMPARISON = "comparison"  # the run of a group that holds what is about all its settings, and the key of its table
FIGURES = "figures"


def columns(metrics: Metrics) -> dict[str, float | int]:
    """What is known of a step, by the names of the columns. Counts of a blend's sources are data/samples/SOURCE."""
    return {_column(key): value for key, value in metrics.items() if value is not None}


def _column(key: str) -> str:
    return METRIC_NAMES.get(key) or (f"data/{key}" if "/" in key else f"train/{key}")


def device_type(device: str) -> str:
    """cpu or cuda, from a device that is ready to print."""
    return "cpu" if device.startswith("cpu") else "cuda"


def run_id(label: str) -> str:
    """A new id that starts with the setting: it names the run's folder, which is all that `wandb leet` lists."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', label)}-{secrets.token_hex(4)}"
