"""Whether checkpoints are whole, and a checkpoint of many ranks made one of a single process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from megaselect.config import ParallelConfig
from megaselect.distributed.layout import Layout
from megaselect.distributed.pieces import Piece
from megaselect.errors import CheckpointError, ConfigError
from megaselect.training.checkpoint import DTYPE_NAMES, fill_pieces, newest_checkpoint
from megaselect.training.checkpoint_files import (
    KINDS,
    Checkpoint,
    Kind,
    abandon_checkpoint,
    begin_checkpoint,
    checkpoint_path,
    finish_checkpoint,
    inspect,
    list_checkpoints,
    open_checkpoint,
    rank_file,
    step_of,
    write_files,
)
from megaselect.training.checkpoint_records import Damage, FileRecord
from megaselect.training.disk_errors import reason_of, remedy_for
from megaselect.training.run_dir import TOKENIZER_NAME

_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class Verified:
    """A checkpoint of which every byte was read. damage: what is wrong, or None; then the rest is known.

    layout: the ranks that wrote it. files, bytes: without the manifest.
    """

    path: Path
    damage: str | None = None
    layout: str = ""
    files: int = 0
    bytes: int = 0


def verified(place: Path) -> Iterator[Verified]:
    """A checkpoint, or those of a run directory, oldest first. Raises CheckpointError where there is none."""
    paths = [place.resolve()] if step_of(place.resolve()) is not None else list_checkpoints(place)
    if not paths or not paths[0].is_dir():
        raise CheckpointError(f"{place} holds no checkpoint: name a run directory or a checkpoints/step-N in it")
    for path in paths:
        try:
            checkpoint = inspect(path)
        except Damage as damage:
            if path.is_dir():  # else the run that goes on there has removed it by now
                yield Verified(path, str(damage))
            continue
        records = checkpoint.manifest.files.values()
        yield Verified(path, None, layout_of(checkpoint), len(records), sum(record.bytes for record in records))


def layout_of(checkpoint: Checkpoint) -> str:
    """The ranks that wrote it, such as `4 ranks, sharing parameters`."""
    ranks = sum(file.startswith("model") for file in checkpoint.manifest.files)
    try:
        parallel = ParallelConfig.model_validate(checkpoint.saved.config.get("parallel", {}))
        return str(Layout.of(parallel, ranks, 0))
    except (ConfigError, ValidationError):  # of another version
        return f"{ranks} ranks"


def consolidate(place: Path, target: Path) -> tuple[Path, list[str]]:
    """Write the checkpoint that `place` is, or the newest whole one of a run, as one process would have written it.

    target: becomes a run directory with that checkpoint, and the run's tokenizer. The optimizer's state is in memory
    once at most, and the weights when it is not. Returns the new checkpoint, and notes on damaged ones that were passed
    over. Raises CheckpointError: target exists or cannot be written, or there is no whole checkpoint.
    """
    checkpoint, notes = _chosen(place)
    home = checkpoint_path(target, checkpoint.saved.state.step)
    try:
        target.mkdir(parents=True)
    except FileExistsError as error:
        raise CheckpointError(f"--out {target} exists already: name a directory that does not") from error
    except OSError as error:
        raise _refused(target, error) from error
    try:
        _write(checkpoint, home)
        tokenizer = checkpoint.path.parent.parent / TOKENIZER_NAME
        if tokenizer.is_file():
            shutil.copyfile(tokenizer, target / TOKENIZER_NAME)
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise _refused(target, error) from error
        raise
    return home, notes


def _refused(target: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write to --out {target}: {reason_of(error)}; {remedy_for(error)}")


def _chosen(place: Path) -> tuple[Checkpoint, list[str]]:
    if step_of(place.resolve()) is not None and place.is_dir():
        return open_checkpoint(place.resolve()), []
    found = newest_checkpoint(place, remedy="name another run")
    if found.checkpoint is None:
        raise CheckpointError(f"{place} holds no checkpoint: name a run directory or a checkpoints/step-N in it")
    return found.checkpoint, found.notes


def _write(checkpoint: Checkpoint, home: Path) -> None:
    try:
        begin_checkpoint(home)
        files: dict[str, FileRecord] = {}
        for kind in KINDS:
            files |= write_files(home, {rank_file(kind, 0, 1): _whole(checkpoint, kind)})
        finish_checkpoint(home, files, checkpoint.saved, lambda: None)
    finally:
        abandon_checkpoint(home)


def _whole(checkpoint: Checkpoint, kind: Kind) -> dict[str, Tensor]:
    """All tensors of a kind, each in one."""
    wholes = {name: parts[0][1].whole for name, parts in checkpoint.parts(kind).items()}
    unknown = {whole.dtype for whole in wholes.values()} - _DTYPES.keys()
    if unknown:
        raise CheckpointError(f"checkpoint {checkpoint.path} has tensors of {', '.join(sorted(unknown))}")
    tensors = {name: torch.empty(whole.shape, dtype=_DTYPES[whole.dtype]) for name, whole in wholes.items()}
    fill_pieces(checkpoint, kind, {name: Piece(tensor) for name, tensor in tensors.items()})
    return tensors
