"""Which checkpoint a run continues from, and loading it. How one lies on disk: megaselect.training.checkpoint_files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from megaselect.distributed.pieces import Piece
from megaselect.distributed.ranks import Ranks
from megaselect.errors import CheckpointError
from megaselect.training.checkpoint_files import (
    MANIFEST,
    Checkpoint,
    Kind,
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


def find_checkpoint(resume: str, run_dir: Path, ranks: Ranks | None = None) -> Found:
    """The checkpoint that --resume auto | none | PATH means; PATH is a run directory or one checkpoint in it.

    Of a run directory it is the newest whole one. Raises CheckpointError where PATH holds none or a damaged one, where
    all are damaged, and where `none` or another run's PATH would train into a directory that holds some.
    """
    if resume == "auto":
        return newest_checkpoint(run_dir, "choose another --run-dir, or move them away to start anew", ranks)
    own = list_checkpoints(run_dir)
    path = Path(resume)
    if own and (resume == "none" or not is_same_run(path, run_dir)):
        raise CheckpointError(
            f"{run_dir} already holds a run (up to {own[-1].name}) and --resume {resume} would overwrite it: choose "
            "another --run-dir, or --resume auto to continue"
        )
    if resume == "none":
        return Found(None, [])
    ranks = ranks or Ranks()
    if ranks.from_first(_is_checkpoint(path.resolve())):
        return Found(open_checkpoint(path.resolve(), ranks), [])
    found = newest_checkpoint(path, ranks=ranks)
    if found.checkpoint is None:
        raise CheckpointError(
            f"--resume {resume}: no checkpoint there; give a run directory or a checkpoints/step-N in it"
        )
    return found


def newest_checkpoint(run_dir: Path, remedy: str = "name another run", ranks: Ranks | None = None) -> Found:
    """The newest whole checkpoint of a run. Raises CheckpointError, with the remedy, where all of them are damaged."""
    damaged: list[tuple[Path, Damage]] = []
    ranks = ranks or Ranks()
    for path in map(Path, ranks.from_first([str(path) for path in reversed(list_checkpoints(run_dir))])):
        try:
            return Found(inspect(path, ranks), _notes_on(damaged, path))
        except Damage as damage:
            if ranks.from_first(path.is_dir()):  # else the run that goes on there has removed it by now
                damaged.append((path, damage))
    if damaged:
        problems = "; ".join(f"{path.name}: {damage}" for path, damage in damaged)
        raise CheckpointError(f"every checkpoint in {run_dir / 'checkpoints'} is damaged ({problems}): {remedy}")
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
    """Load weights, optimizer and position; of a model that is cut, this rank's rows.

    Raises CheckpointError where they are another model's.
    """
    weights, state = optimizer.weight_pieces(), optimizer.pieces()
    _compare(checkpoint, "model", weights, optimizer.dtype)
    _compare(checkpoint, "optimizer", state)
    fill_pieces(checkpoint, "model", weights)
    fill_pieces(checkpoint, "optimizer", state)
    try:
        optimizer.load_scalars(checkpoint.saved.loss_scale)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} lacks what the optimizer needs: {one_line(str(error))}"
        ) from error
    return checkpoint.saved.state


def load_weights(checkpoint: Checkpoint, model: nn.Module) -> None:
    """Load the weights alone, into a model of the saved shapes and dtype. Raises CheckpointError."""
    weights = {name: Piece(weight.detach()) for name, weight in model.named_parameters()}
    _compare(checkpoint, "model", weights)
    fill_pieces(checkpoint, "model", weights)


def _compare(checkpoint: Checkpoint, kind: Kind, pieces: Mapping[str, Piece], dtype: torch.dtype | None = None) -> None:
    """By the manifest, before anything is read. dtype: of the tensors that were saved, where it is not the pieces'."""
    expected = {
        name: TensorRecord(dtype=DTYPE_NAMES[dtype or piece.tensor.dtype], shape=piece.shape)
        for name, piece in pieces.items()
    }
    saved = {name: parts[0][1].whole for name, parts in checkpoint.parts(kind).items()}
    for tensor in sorted(saved.keys() | expected.keys()):
        there, wanted = saved.get(tensor), expected.get(tensor)
        if there != wanted:
            raise CheckpointError(
                f"checkpoint {checkpoint.path} is another model's: its {kind} has {one_line(tensor)} as "
                f"{_describe(there)}, needed is {_describe(wanted)}: use the model settings and the --dtype that it "
                "was saved with"
            )


def _describe(tensor: TensorRecord | None) -> str:
    return "nothing" if tensor is None else one_line(f"{tensor.dtype} {list(tensor.shape)}")


@torch.no_grad()
def fill_pieces(checkpoint: Checkpoint, kind: Kind, pieces: Mapping[str, Piece]) -> None:
    """Copy the saved rows into the pieces, file by file.

    Read, not mapped: a file that is cut off later must not kill the run that loaded it.
    """
    wanted: dict[str, list[tuple[str, TensorRecord]]] = {}
    for name, parts in checkpoint.parts(kind).items():
        for file, part in parts:
            wanted.setdefault(file, []).append((name, part))
    for file, parts in wanted.items():
        try:
            with safe_open(checkpoint.path / file, framework="pt", backend="pread") as opened:
                for name, part in parts:
                    _fill_from(opened, name, part, pieces[name])
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {checkpoint.path / file}: {one_line(str(error))}") from error


def _fill_from(opened: Any, name: str, part: TensorRecord, piece: Piece) -> None:
    """The rows that the file's part and the piece have in common. opened: a safetensors file."""
    if part.rows is None and piece.rows is None:
        piece.tensor.copy_(opened.get_tensor(name))
        return
    first = max(part.span.start, piece.start)
    last = min(part.span.stop, piece.start + len(piece.tensor))
    if first < last:
        rows = opened.get_slice(name)[first - part.span.start : last - part.span.start]
        piece.tensor[first - piece.start : last - piece.start].copy_(rows)
