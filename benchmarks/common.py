"""What the benchmarks share: the modes' configs, random data, the train step, the environment record, tables."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megaselect.build import build_model
from megaselect.config import Config
from megaselect.devices import device_name
from megaselect.training.optimizer import MixedPrecisionAdamW

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATA_SEED = 1234

MODES: dict[str, dict[str, Any]] = {
    "none": {"recompute.mode": "none"},
    "selective": {"recompute.mode": "selective"},
    "core_attn dropout": {"recompute.mode": "selective", "recompute.modules": ["core_attn", "dropout"]},
    "full": {"recompute.mode": "full"},
}


class RandomBatch(NamedTuple):
    """tokens, targets: int64 [b, s]; sample_index: int64 [b]."""

    tokens: Tensor
    targets: Tensor
    sample_index: Tensor


class Quantiles(NamedTuple):
    """Of a list of measurements, in their unit."""

    low: float
    median: float
    high: float


def read_config(name: str, overrides: dict[str, Any]) -> Config:
    """configs/NAME.yaml, or the file that `name` is a path of; overrides have dotted names. Raises ConfigError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CONFIGS / f"{name}.yaml"
    return Config.from_yaml(path, overrides)


def random_batch(config: Config, number: int, device: torch.device) -> RandomBatch:
    """The number-th micro-batch of a stream that depends on nothing else, already on the device."""
    size, sequence = config.training.micro_batch_size, config.model.seq_length
    generator = torch.Generator().manual_seed(DATA_SEED + number)
    window = torch.randint(config.model.vocab_size, (size, sequence + 1), generator=generator)
    sample_index = torch.arange(number * size, (number + 1) * size)
    tensors = (window[:, :-1].contiguous(), window[:, 1:].contiguous(), sample_index)
    return RandomBatch(*(tensor.to(device) for tensor in tensors))


class MegaselectStep:
    """Model and optimizer of a config; a call trains on one micro-batch and returns the loss, known to the host."""

    def __init__(self, config: Config) -> None:
        self.model = build_model(config)
        self.optimizer = MixedPrecisionAdamW(self.model, config.training)
        self.learning_rate = config.training.lr

    def __call__(self, batch: RandomBatch) -> float:
        """Forward, backward, clip, AdamW."""
        loss = self.model(*batch)
        self.optimizer.backward(loss)
        self.optimizer.step(self.learning_rate)
        return loss.item()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def quantiles(values: Sequence[float]) -> Quantiles:
    """The 20 % quantile, the median and the 80 % quantile; of a single value, that value thrice."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Quantiles(fifths[0], statistics.median(values), fifths[3])


def environment(device: torch.device) -> dict[str, Any]:
    """What a figure depends on besides the code: device, versions, date (UTC) and command line."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("triton", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device_name(device),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def describe(record: dict[str, Any]) -> str:
    """The environment in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return f"{record['device']}\n{versions}\n{record['date']}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text; the first column is flush left, the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def write_json(path: Path | None, report: dict[str, Any]) -> None:
    """Write the report where a path was asked for."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n")
