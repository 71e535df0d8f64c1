"""Megaselect trains GPT models with activation recomputation as a switch: memory and time change, nothing else.

    from megaselect import Config, train

Names load on first use, so that the kernels and `--help` need neither pydantic nor torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megaselect.api import train
    from megaselect.build import build_model
    from megaselect.config import Config
    from megaselect.estimation.estimate import estimate
    from megaselect.planning.any_model import recompute
    from megaselect.training.callbacks import Callback
    from megaselect.verification import verify

__version__ = "0.1.0"
__all__ = ["Callback", "Config", "__version__", "build_model", "estimate", "recompute", "train", "verify"]

_HOMES = {
    "Callback": "megaselect.training.callbacks",
    "Config": "megaselect.config",
    "build_model": "megaselect.build",
    "estimate": "megaselect.estimation.estimate",
    "recompute": "megaselect.planning.any_model",
    "train": "megaselect.api",
    "verify": "megaselect.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
