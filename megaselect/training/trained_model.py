"""A trained model from a run or a checkpoint, to be used and not to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megaselect.config import Config
from megaselect.data.tokenizer import Tokenizer
from megaselect.devices import DTYPES, resolve_device
from megaselect.errors import CheckpointError, DataError
from megaselect.models.gpt.model import GPT
from megaselect.training.checkpoint import DTYPE_NAMES, load_weights, newest_checkpoint
from megaselect.training.checkpoint_files import BEST, Checkpoint, list_checkpoints, open_checkpoint, step_of
from megaselect.training.datasets import open_tokenizer
from megaselect.training.run_dir import TOKENIZER_NAME

# Kernels are those of this device, whatever the run had.
_OVERRIDES = {"model.kernel_backend": "auto"}


@dataclass(frozen=True)
class TrainedModel:
    """model: in eval mode, on the device. notes: which checkpoints were passed over, and why."""

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Path
    notes: list[str]


@dataclass(frozen=True)
class SavedModel:
    """model: in eval mode, on the device. config: the run's. tokenizer: the file that the run kept. notes: as above."""

    model: GPT
    config: Config
    checkpoint: Checkpoint
    tokenizer: Path | None
    notes: list[str]


def load_saved_model(place: Path, which: str | None, device: str, dtype: str) -> SavedModel:
    """The model in a run directory or a checkpoint, whatever its data; place, which and device as below.

    dtype: fp32, bf16 or fp16; auto is what it was trained in. A model that was trained with torch kernels keeps them.
    Raises CheckpointError, ConfigError or DeviceError.
    """
    where = resolve_device(device)
    checkpoint, notes = _open(place, which)
    config = Config.from_dict(checkpoint.saved.config, str(checkpoint.path / "state.json"))
    if config.model.kernel_backend in ("triton", "numba"):
        config = Config.from_dict(config.to_dict(), overrides=_OVERRIDES)
    model = _build(checkpoint, config, where, _saved_dtype(checkpoint) if dtype == "auto" else DTYPES[dtype])
    kept = checkpoint.path.parent.parent / TOKENIZER_NAME
    return SavedModel(model, config, checkpoint, kept if kept.is_file() else None, notes)


def load_trained_model(place: Path, which: str | None, device: str, tokenizer: Path | None) -> TrainedModel:
    """The model in a run directory or a checkpoint.

    which: of a run's checkpoints `best`, `step-N` or N; None: the newest whole one. device: auto, cpu or cuda; on a CPU
    the model computes in fp32, whatever it was trained in. tokenizer: None takes the one that the run kept.
    Raises CheckpointError, DataError, ConfigError or DeviceError.
    """
    where = resolve_device(device)
    checkpoint, notes = _open(place, which)
    kept = checkpoint.path.parent.parent / TOKENIZER_NAME
    named = tokenizer or (kept if kept.is_file() else None)
    config = Config.from_dict(checkpoint.saved.config, str(checkpoint.path / "state.json"), _OVERRIDES)
    # What lies beside the data now may be another one: the data can have been prepared anew since.
    words = Tokenizer(named) if named else _tokenizer_of_data(checkpoint, config)
    if words is not None and words.vocab_size > config.model.vocab_size:
        raise DataError(
            f"the tokenizer {named} has {words.vocab_size:,} pieces, and the model of {checkpoint.path} a vocabulary "
            f"of {config.model.vocab_size:,}: name the one that the run was trained with by --tokenizer"
        )
    if words is None:
        data = config.data.prefix or " ".join(config.data.blend)
        raise DataError(
            f"{checkpoint.path}: its data, {data}, has no tokenizer beside it: name a sentencepiece .model file by "
            "--tokenizer"
        )
    return TrainedModel(_build(checkpoint, config, where), words, checkpoint.path, notes)


def _tokenizer_of_data(checkpoint: Checkpoint, config: Config) -> Tokenizer | None:
    try:
        return open_tokenizer(config)
    except DataError as error:
        raise DataError(
            f"{checkpoint.path}: its run kept no tokenizer, and that of its data cannot be used ({error}): name the "
            "one that the run was trained with by --tokenizer"
        ) from None


def _open(place: Path, which: str | None) -> tuple[Checkpoint, list[str]]:
    if step_of(place.resolve()) is not None:
        if which is not None:
            raise CheckpointError(f"--checkpoint {which}: {place} is a checkpoint already; name its run directory")
        return open_checkpoint(place.resolve()), []
    if which is None:
        found = newest_checkpoint(place)
        if found.checkpoint is None:
            raise CheckpointError(f"{place} holds no checkpoint: name the directory of a run that has saved one")
        return found.checkpoint, found.notes
    return open_checkpoint(_named(place, which)), []


def _named(run_dir: Path, which: str) -> Path:
    there = list_checkpoints(run_dir)
    if which == BEST:
        path = (run_dir / "checkpoints" / BEST).resolve()
    else:
        step = which.removeprefix("step-")
        path = next((path for path in there if step.isdecimal() and step_of(path) == int(step)), run_dir / "none")
    if step_of(path) is None or not path.is_dir():
        names = ", ".join(path.name for path in there) or "none"
        raise CheckpointError(f"--checkpoint {which}: {run_dir} does not have it; it has {names}")
    return path


def _saved_dtype(checkpoint: Checkpoint) -> torch.dtype:
    saved = next(iter(checkpoint.parts("model").values()))[0][1].dtype
    return {name: dtype for dtype, name in DTYPE_NAMES.items()}.get(saved, torch.float32)


def _build(checkpoint: Checkpoint, config: Config, device: torch.device, dtype: torch.dtype | None = None) -> GPT:
    """The weights in the dtype that they were saved in, then in `dtype`; None: on a CPU in fp32."""
    model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens).to(_saved_dtype(checkpoint))
    load_weights(checkpoint, model)
    return model.to(device, dtype or (torch.float32 if device.type == "cpu" else None)).eval()
