"""Which checkpoint a run continues from, and loading it. How one lies on disk: megaselect.training.checkpoint_files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from megaselect.devices import is_out_of_memory
from megaselect.errors import CheckpointError
from megaselect.training.checkpoint_files import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    inspect,
    list_checkpoints,
    open_checkpoint,
    step_of,
)
from megaselect.training.checkpoint_records import Damage, TensorRecord, one_line
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState

DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class Found:
    """checkpoint: None where there is none. notes: which damaged ones were passed over, and why."""

    checkpoint: Checkpoint | None
    notes: list[str]


def find_checkpoint(resume: str, run_dir: Path) -> Found:
    """The checkpoint that --resume auto | none | PATH means; PATH is a run directory or one checkpoint in it.

    Of a run directory it is the newest whole one. Raises CheckpointError where PATH holds none or a damaged one, where
    all are damaged, and where `none` or another run's PATH would train into a directory that holds some.
    """
    if resume == "auto":
        return newest_checkpoint(run_dir, "choose another --run-dir, or move them away to start anew")
    own = list_checkpoints(run_dir)
    path = Path(resume)
    if own and (resume == "none" or not is_same_run(path, run_dir)):
        raise CheckpointError(
            f"{run_dir} already holds a run (up to {own[-1].name}) and --resume {resume} would overwrite it: choose "
            "another --run-dir, or --resume auto to continue"
        )
    if resume == "none":
        return Found(None, [])
    if _is_checkpoint(path.resolve()):
        return Found(open_checkpoint(path.resolve()), [])
    found = newest_checkpoint(path)
    if found.checkpoint is None:
        raise CheckpointError(
            f"--resume {resume}: no checkpoint there; give a run directory or a checkpoints/step-N in it"
        )
    return found


def newest_checkpoint(run_dir: Path, remedy: str = "name another run") -> Found:
    """The newest whole checkpoint of a run. Raises CheckpointError, with the remedy, where all of them are damaged."""
    damaged: list[tuple[Path, Damage]] = []
    for path in reversed(list_checkpoints(run_dir)):
        try:
            return Found(inspect(path), _notes_on(damaged, path))
        except Damage as damage:
            if path.is_dir():  # else the run that goes on there has removed it by now
                damaged.append((path, damage))
    if damaged:
        listed = "; ".join(f"{path.name}: {damage}" for path, damage in damaged)
        raise CheckpointError(f"every checkpoint in {run_dir / 'checkpoints'} is damaged ({listed}): {remedy}")
    return Found(None, [])


def _notes_on(damaged: list[tuple[Path, Damage]], used: Path) -> list[str]:
    return [
        f"note: checkpoint {path} is damaged ({damage}): {used.name} is taken; the damaged one stays until training "
        "saves that step again"
        for path, damage in damaged
    ]


def is_same_run(path: Path, run_dir: Path) -> bool:
    """Whether a run directory or a checkpoint belongs to the run in run_dir."""
    home = path.resolve()
    return run_dir.resolve() == (home.parent.parent if _is_checkpoint(home) else home)


def _is_checkpoint(path: Path) -> bool:
    """By its name, or by its manifest where somebody gave it another name."""
    return path.is_dir() and (step_of(path) is not None or (path / MANIFEST).exists())


def load_checkpoint(checkpoint: Checkpoint, model: nn.Module, optimizer: MixedPrecisionAdamW) -> RunState:
    """Load weights, optimizer and position. Raises CheckpointError where they are another model's."""
    load_weights(checkpoint, model)
    _compare(checkpoint, OPTIMIZER, optimizer.tensors())
    try:
        optimizer.load_tensors(_read_tensors(checkpoint, OPTIMIZER))
        optimizer.load_scalars(checkpoint.saved.loss_scale)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"checkpoint {checkpoint.path} lacks what the optimizer needs: {one_line(str(error))}"
        ) from error
    return checkpoint.saved.state


@torch.no_grad()
def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights alone, into a model of the saved shapes and dtype. Raises CheckpointError."""
    weights = dict(model.named_parameters())
    _compare(checkpoint, MODEL, weights)
    for name, tensor in _read_tensors(checkpoint, MODEL).items():
        weights[name].copy_(tensor)


def _compare(checkpoint: Checkpoint, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """By the manifest, before anything is read."""
    expected = {
        tensor: TensorRecord(dtype=DTYPE_NAMES[each.dtype], shape=tuple(each.shape)) for tensor, each in tensors.items()
    }
    saved = checkpoint.manifest.files[name].tensors
    for tensor in sorted(saved.keys() | expected.keys()):
        there, wanted = saved.get(tensor), expected.get(tensor)
        if there != wanted:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is another model's: {name} has {one_line(tensor)} as "
                f"{_describe(there)}, needed is {_describe(wanted)}: use the model settings and the --dtype that it "
                "was saved with"
            )


def _describe(tensor: TensorRecord | None) -> str:
    return "nothing" if tensor is None else one_line(f"{tensor.dtype} {list(tensor.shape)}")


def _read_tensors(checkpoint: Checkpoint, name: str) -> dict[str, torch.Tensor]:
    """Read, not mapped: a file that is cut off later must not kill the run that loaded it."""
    try:
        with safe_open(checkpoint.path / name, framework="pt", backend="pread") as file:
            return {tensor: file.get_tensor(tensor) for tensor in file.offset_keys()}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {checkpoint.path / name}: {one_line(str(error))}") from error
