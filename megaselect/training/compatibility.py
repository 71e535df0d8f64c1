"""Which settings may change between a checkpoint and the run that continues it.

Refused: what would be another model or another draw of masks and data order. Data: other tokens are refused in the same
run directory, where losses before and after would stand in one file; a run that begins elsewhere may go on with others,
and says so. Silent: what cannot change a loss, recompute among it. All else may change and is noted.
"""

from __future__ import annotations

from pathlib import Path

import torch

from megaselect.config import Config, iter_settings
from megaselect.errors import CheckpointError, ConfigError
from megaselect.training.checkpoint import DTYPE_NAMES, is_same_run
from megaselect.training.checkpoint_files import Checkpoint
from megaselect.training.checkpoint_records import one_line

FIXED_SETTINGS = (
    "model.num_layers",
    "model.hidden_size",
    "model.num_attention_heads",
    "model.ffn_hidden_size",
    "model.seq_length",
    "model.vocab_size",
    "training.seed",
)
# They say where tokens lie; the fingerprint tells whether others lie there now. It does not see validation data.
PLACES = ("data.prefix", "data.blend", "data.valid_fraction", "data.test_fraction", "data.vocab_size")
_SILENT_SECTIONS = ("recompute", "parallel", "logging")
_SILENT_SETTINGS = (
    *("data.check", "data.prefetch", "data.cache_dir", "data.tokenizer", "data.test_prefix"),
    *("training.dtype", "training.device", "training.run_dir", "training.resume", "training.exit_after"),
    *("training.eval_interval", "training.save_interval", "training.sample_tokens"),
    *("training.keep_checkpoints", "training.keep_best", "training.on_nonfinite", "training.on_oom"),
)
_DATA_SETTINGS = (*PLACES, "data.valid_prefix")

Changes = dict[str, tuple[object, object]]


def changed_settings(checkpoint: Checkpoint | None, config: Config, dtype: torch.dtype) -> list[str]:
    """Notes on settings other than those of the data that differ. Raises CheckpointError for those that must not."""
    if checkpoint is None:
        return []
    changes = _changes(_config_of(checkpoint), config)
    refused = {name: change for name, change in changes.items() if name in FIXED_SETTINGS} | _dtype(checkpoint, dtype)
    if refused:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} is of another training ({_listed(refused)}): use its values, or another "
            "--run-dir"
        )
    noted = {name: change for name, change in changes.items() if _is_noted(name)}
    return [f"note: settings that differ from the checkpoint's: {_listed(noted)}"] if noted else []


def changed_data(checkpoint: Checkpoint | None, config: Config, fingerprint: str, run_dir: Path) -> list[str]:
    """A note where the data differs. Raises CheckpointError where it does so within one run directory."""
    if checkpoint is None:
        return []
    changes = {
        name: change for name, change in _changes(_config_of(checkpoint), config).items() if name in _DATA_SETTINGS
    }
    saved = checkpoint.saved.data_fingerprint
    if saved != fingerprint:
        changes["fingerprint"] = (saved, fingerprint)
    if not changes:
        return []
    same_tokens = changes.keys() <= set(PLACES)
    if is_same_run(checkpoint.path, run_dir) and not same_tokens:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} was trained on other data ({_listed(changes)}): use the same, or go on with "
            f"--resume {run_dir} in another --run-dir"
        )
    kind = (
        "the same tokens as the checkpoint's, by other settings" if same_tokens else "other data than the checkpoint's"
    )
    return [f"note: {kind}: {_listed(changes)}"]


def _config_of(checkpoint: Checkpoint) -> Config:
    """As the run had it, with what it left out filled in; the sections that never matter are left out."""
    sections = {name: each for name, each in checkpoint.saved.config.items() if name not in _SILENT_SECTIONS}
    try:
        return Config.from_dict(sections, "its config")
    except ConfigError as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path} does not fit this version ({one_line(str(error))}): continue with "
            "the version that wrote it"
        ) from error


def _changes(then: Config, now: Config) -> Changes:
    values = {}
    for dotted, _ in iter_settings():
        section, name = dotted.split(".")
        before, after = (getattr(getattr(config, section), name) for config in (then, now))
        if section not in _SILENT_SECTIONS and before != after:
            values[dotted] = (before, after)
    return values


def _dtype(checkpoint: Checkpoint, dtype: torch.dtype) -> Changes:
    """By the saved weights, since auto means another dtype on another device."""
    wanted = DTYPE_NAMES[dtype]
    saved = {part.dtype for parts in checkpoint.parts("model").values() for _, part in parts}
    if saved == {wanted}:
        return {}
    return {"training.dtype": ("/".join(sorted(map(_setting_of, saved))), _setting_of(wanted))}


def _setting_of(dtype: str) -> str:
    """The value of training.dtype for safetensors' name of it."""
    return {"F32": "fp32", "F16": "fp16"}.get(dtype, one_line(dtype).lower())


def _is_noted(name: str) -> bool:
    return name not in FIXED_SETTINGS and name not in _SILENT_SETTINGS and name not in _DATA_SETTINGS


def _listed(changes: Changes) -> str:
    return ", ".join(f"{name} {_shown(before)} -> {_shown(after)}" for name, (before, after) in changes.items())


def _shown(value: object) -> str:
    if value is None or value == ():
        return "none"
    return one_line(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
