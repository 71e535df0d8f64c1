"""The SDK's variables where they meet our settings: a setting that is given wins, then the variable, then our default.

docs/wandb.md says of each variable what becomes of it; those that are not here are the SDK's own affair.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from megaselect.config import LoggingConfig

Mode = Literal["auto", "online", "offline", "disabled"]
# What WANDB_MODE may say, older names among them; others, such as run and shared, are kinds of online.
_OFFLINE, _DISABLED = ("offline", "dryrun"), ("disabled",)
TAG_LENGTH = 64
_TRUE = ("true", "1", "yes", "on")


def mode_for(mode: Mode) -> Mode:
    """`auto` heeds the SDK's own switches."""
    if mode != "auto":
        return mode
    switch = _variable("WANDB_MODE").lower()
    if switch in _DISABLED or _variable("WANDB_DISABLED").lower() in _TRUE:
        return "disabled"
    return "offline" if switch in _OFFLINE else "auto"


def project_for(logging: LoggingConfig) -> str:
    """Where runs go: the setting where it was given, else what the variable says, else the setting's default."""
    given = "wandb_project" in logging.model_fields_set
    return logging.wandb_project if given else _variable("WANDB_PROJECT") or logging.wandb_project


def group_for(logging: LoggingConfig) -> str | None:
    """The group of a run, None where there is none."""
    return logging.wandb_group or _variable("WANDB_RUN_GROUP") or None


def name_for(default: str) -> str:
    """What a training run is called."""
    return _variable("WANDB_NAME") or default


def job_type_for(default: str) -> str:
    """The job type of a training run."""
    return _variable("WANDB_JOB_TYPE") or default


def tags_for(own: Sequence[str]) -> list[str]:
    """Our tags, cut to the length that the SDK allows, then the user's."""
    users = [tag.strip() for tag in _variable("WANDB_TAGS").split(",")]
    return list(dict.fromkeys([*(tag[:TAG_LENGTH] for tag in own), *filter(None, users)]))


def directory_for(default: Path) -> Path:
    """The folder that holds the folder wandb."""
    return Path(_variable("WANDB_DIR") or default)


def run_id_for(default: str) -> str:
    """The id of a training run that goes on with none."""
    return _variable("WANDB_RUN_ID") or default


def without_variables(settings: dict[str, int]) -> dict[str, int]:
    """Settings of the SDK without those that a variable sets, as WANDB_INIT_TIMEOUT sets init_timeout."""
    return {name: value for name, value in settings.items() if not _variable(f"WANDB_{name.upper()}")}


def _variable(name: str) -> str:
    return os.environ.get(name, "").strip()
