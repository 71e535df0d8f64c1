"""What --help says of a setting besides its description: what its value is, and which one it has without its flag."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

DEFAULT_CONFIG = "tiny"  # which is taken without --config

# What stands in --help for the value of a setting that is text.
METAVARS = {
    "data.prefix": "PREFIX",
    "data.blend": "WEIGHT PREFIX",
    "data.valid_prefix": "PREFIX",
    "data.test_prefix": "PREFIX",
    "data.tokenizer": "FILE",
    "data.cache_dir": "DIR",
    "training.resume": "PATH",
    "training.run_dir": "DIR",
    "training.exit_after": "DURATION",
    "recompute.modules": "MODULE",
    "recompute.layers": "LAYERS",
    "recompute.memory": "SIZE",
    "parallel.timeout": "DURATION",
    "logging.wandb_project": "NAME",
    "logging.wandb_group": "NAME",
    "logging.profile": "STEPS",
}


def value_without_flag(field: FieldInfo, configured: Any) -> str:
    """How a help line ends: the default, and what the default config has instead.

    Where the default is none, the description says what none means. configured: None where the config leaves it out.
    """
    default = None if field.is_required() or field.default == () else field.default
    values = {"default": default, DEFAULT_CONFIG: None if configured == default else configured}
    shown = [f"{whose}: {_shown(value)}" for whose, value in values.items() if value is not None]
    return f" ({'; '.join(shown)})" if shown else ""


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(value) if isinstance(value, tuple) else str(value)


def metavar(name: str, kind: Any) -> str:
    """What stands for the value of the setting `name`, of the type `kind`."""
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    kinds = get_args(kind) or (kind,)
    return "N" if int in kinds else "X" if float in kinds else METAVARS[name]
