"""Checkpoints of a run: safetensors and JSON, no pickle, written aside and renamed into place.

    RUN/checkpoints/step-00000100/model.safetensors       weights in the compute dtype, by parameter name
                                 /optimizer.safetensors   moments, step counts, fp32 master weights
                                 /state.json              step, next sample index, loss scale, config

A directory of that name is whole: state.json is written last and the rename is the last act. The dropout masks and the
data order are functions of the seed and the sample index, so there is no RNG state to keep.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from megaselect.config import Config
from megaselect.errors import CheckpointError
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState

FORMAT_VERSION = 1
KEPT_CHECKPOINTS = 2
# What must not change between a checkpoint and the run that continues it: it would be another training.
FIXED_SETTINGS = (
    "model.num_layers",
    "model.hidden_size",
    "model.num_attention_heads",
    "model.ffn_hidden_size",
    "model.seq_length",
    "model.vocab_size",
    "training.seed",
)


def save_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: MixedPrecisionAdamW, state: RunState, config: Config
) -> Path:
    """Write RUN/checkpoints/step-N atomically, drop all but the newest two, and return its path."""
    home = run_dir / "checkpoints" / f"step-{state.step:08d}"
    aside = home.with_name(f".{home.name}.partial")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(
            {name: weight.detach().contiguous() for name, weight in model.named_parameters()},
            aside / "model.safetensors",
        )
        save_file(optimizer.tensors(), aside / "optimizer.safetensors")
        record = {
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "next_sample": state.next_sample,
            "loss_scale": optimizer.scalars(),
            "config": config.to_dict(),
        }
        (aside / "state.json").write_text(json.dumps(record, indent=1) + "\n")
        for path in (*aside.iterdir(), aside):
            _sync(path)
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)
        _sync(home.parent)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write the checkpoint {home}: {error.strerror}; earlier checkpoints are untouched: free some "
            "space, or choose another --run-dir"
        ) from error
    kept = list_checkpoints(run_dir)
    here = kept.index(home) + 1
    # Those ahead are of a run that went back to an earlier step: the metrics have lost their steps too.
    for old in kept[: max(here - KEPT_CHECKPOINTS, 0)] + kept[here:]:
        shutil.rmtree(old)
    return home


class CheckpointSaver:
    """Writes the checkpoints of a run. As a context manager it waits, at the end, for what is still being written."""

    def __init__(self, run_dir: Path, keep: int, note: Callable[[str], None]) -> None:
        self._run_dir, self._keep, self._note = run_dir, keep, note

    def save(self, model: nn.Module, optimizer: MixedPrecisionAdamW, state: RunState, config: Config) -> None:
        """Write RUN/checkpoints/step-N."""
        save_checkpoint(self._run_dir, model, optimizer, state, config)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        """Nothing is in flight."""


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in (run_dir / "checkpoints").glob("step-*/state.json"))


def find_checkpoint(resume: str, run_dir: Path) -> Path | None:
    """The checkpoint that --resume auto | none | PATH means; PATH is a run directory or one checkpoint in it.

    Raises CheckpointError where PATH holds none, or where `none` would train into a directory that holds some.
    """
    found = list_checkpoints(run_dir)
    if resume == "auto":
        return found[-1] if found else None
    if resume == "none":
        if found:
            raise CheckpointError(
                f"{run_dir} already holds a run (up to {found[-1].name}) and --resume none would overwrite it: choose "
                "another --run-dir, or --resume auto to continue"
            )
        return None
    path = Path(resume)
    if (path / "state.json").is_file():
        return path
    found = list_checkpoints(path)
    if not found:
        raise CheckpointError(
            f"--resume {resume}: no checkpoint there; give a run directory or a checkpoints/step-N in it"
        )
    return found[-1]


def load_checkpoint(path: Path, model: nn.Module, optimizer: MixedPrecisionAdamW, config: Config) -> RunState:
    """Load weights, optimizer and position. Raises CheckpointError where it is damaged or another model's."""
    try:
        record = json.loads((path / "state.json").read_text())
        _check_config(path, record["config"], config)
        _load_weights(path, model)
        optimizer.load_tensors(load_file(path / "optimizer.safetensors"))
        optimizer.load_scalars(record["loss_scale"])
        return RunState(record["step"], record["next_sample"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "remove it to continue from the one before, or choose another --run-dir"
        raise CheckpointError(f"checkpoint {path} is damaged ({error}): {remedy}") from error


def _check_config(path: Path, saved: dict[str, Any], config: Config) -> None:
    then = Config.from_dict(saved, str(path / "state.json"))  # fills in what the run left out
    for setting in FIXED_SETTINGS:
        section, key = setting.split(".")
        before, after = (getattr(getattr(each, section), key) for each in (then, config))
        if before != after:
            raise CheckpointError(
                f"checkpoint {path} was made with {setting} = {before}, this run has {after}: use the same value, or "
                "another --run-dir"
            )


@torch.no_grad()
def _load_weights(path: Path, model: nn.Module) -> None:
    tensors = load_file(path / "model.safetensors")
    for name, weight in model.named_parameters():
        if tensors[name].dtype != weight.dtype:
            raise CheckpointError(
                f"checkpoint {path} holds {tensors[name].dtype} weights, this run computes in {weight.dtype}: "
                "continue with the same --dtype"
            )
        weight.copy_(tensors[name])


def _sync(path: Path) -> None:
    """Ask the disk to have it, so that a rename cannot outlive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
