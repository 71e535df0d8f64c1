"""A trained model from a run or a checkpoint, to be used and not to be trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megaselect.config import Config
from megaselect.data.tokenizer import Tokenizer
from megaselect.devices import resolve_device
from megaselect.errors import CheckpointError, DataError
from megaselect.model.gpt import GPT
from megaselect.training.checkpoint import DTYPE_NAMES, load_weights, newest_checkpoint
from megaselect.training.checkpoint_files import BEST, MODEL, Checkpoint, list_checkpoints, open_checkpoint, step_of
from megaselect.training.datasets import open_tokenizer
from megaselect.training.run_dir import TOKENIZER_NAME


@dataclass(frozen=True)
class TrainedModel:
    """model: in eval mode, on the device. notes: which checkpoints were passed over, and why."""

    model: GPT
    tokenizer: Tokenizer
    checkpoint: Path
    notes: list[str]


def load_trained_model(place: Path, which: str | None, device: str, tokenizer: Path | None) -> TrainedModel:
    """The model in a run directory or a checkpoint.

    which: of a run's checkpoints `best`, `step-N` or N; None: the newest whole one. device: auto, cpu or cuda; on a CPU
    the model computes in fp32, whatever it was trained in. tokenizer: None takes the one that the run kept.
    Raises CheckpointError, DataError, ConfigError or DeviceError.
    """
    where = resolve_device(device)
    checkpoint, notes = _open(place, which)
    kept = checkpoint.path.parent.parent / TOKENIZER_NAME
    overrides = _overrides(tokenizer or (kept if kept.is_file() else None))
    config = Config.from_dict(checkpoint.saved.config, str(checkpoint.path / "state.json"), overrides)
    words = open_tokenizer(config)
    if words is None:
        data = config.data.prefix or " ".join(config.data.blend)
        raise DataError(
            f"{checkpoint.path}: its data, {data}, has no tokenizer beside it: name a sentencepiece .model file by "
            "--tokenizer"
        )
    return TrainedModel(_build(checkpoint, config, where), words, checkpoint.path, notes)


def _overrides(tokenizer: Path | None) -> dict[str, str]:
    """Kernels are those of this device, whatever the run had."""
    return {"model.kernel_backend": "auto"} | ({"data.tokenizer": str(tokenizer)} if tokenizer else {})


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


def _build(checkpoint: Checkpoint, config: Config, device: torch.device) -> GPT:
    """The weights in the dtype that they were saved in, then on a CPU in fp32."""
    saved = next(iter(checkpoint.manifest.files[MODEL].tensors.values())).dtype
    dtypes = {name: dtype for dtype, name in DTYPE_NAMES.items()}
    model = GPT(config.model, config.training.seed).to(dtypes.get(saved, torch.float32))
    load_weights(checkpoint, model)
    return model.to(device, torch.float32 if device.type == "cpu" else None).eval()
