"""What runs and metrics are called in Weights & Biases. Training, comparisons and dashboards share these names."""

from __future__ import annotations

import re
import secrets

# Metric of a step, as the trainer spells it -> column of the run's history.
METRIC_NAMES = {
    "step": "step",
    "samples": "samples",
    "tokens": "tokens",
    "loss": "train/loss",
    "loss_difference": "train/loss_difference",
    "grad_norm": "train/grad_norm",
    "lr": "train/lr",
    "stored_bytes": "mem/stored_bytes",
    "peak_bytes": "mem/peak_bytes",
    "step_ms": "perf/step_ms",
    "tokens_per_s": "perf/tokens_per_s",
    "mfu": "perf/mfu",
    "hfu": "perf/hfu",
}
# Field of a training run's summary -> its name in the summary of the run.
SUMMARY_NAMES = {
    "steps": "steps",
    "tokens": "tokens",
    "seconds": "perf/seconds",
    "final_loss": "train/final_loss",
    "valid_loss": "eval/final_loss",
    "best_valid_loss": "eval/best_loss",
    "tokens_per_s": "perf/median_tokens_per_s",
    "step_ms": "perf/median_step_ms",
    "mfu": "perf/median_mfu",
    "hfu": "perf/median_hfu",
    "stored_bytes": "mem/stored_bytes",
    "peak_bytes": "mem/peak_bytes",
    "sample": "sample",
    "interrupted": "interrupted",
}
COMPARISON = "comparison"  # the run of a group that holds what is about all its settings, and the key of its table
FIGURES = "figures"


def device_type(device: str) -> str:
    """cpu or cuda, from a device that is ready to print."""
    return "cpu" if device.startswith("cpu") else "cuda"


def run_id(label: str) -> str:
    """A new id that starts with the setting: it names the run's folder, which is all that `wandb leet` lists."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '_', label)}-{secrets.token_hex(4)}"
