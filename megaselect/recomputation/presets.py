"""Recompute settings with names of their own, and the flags that ask for them. No torch."""

from __future__ import annotations

from megaselect.config import RecomputeConfig
from megaselect.config.schema import MODULES

# From what keeps the most for backward to what keeps the least.
NAMED = {
    "none": RecomputeConfig(),
    "selective": RecomputeConfig(mode="selective"),
    "core_attn dropout": RecomputeConfig(mode="selective", modules=("core_attn", "dropout")),
    "all": RecomputeConfig(mode="selective", modules=MODULES),
    "full": RecomputeConfig(mode="full"),
    "full: sqrt": RecomputeConfig(mode="full", method="sqrt"),
}
FLAGS = {
    "none": "--recompute none",
    "selective": "--recompute selective",
    "core_attn dropout": "--recompute selective --recompute-modules core_attn dropout",
    "all": "--recompute selective --recompute-modules all",
    "full": "--recompute full",
    "full: sqrt": "--recompute full --recompute-method sqrt",
    "auto": "--recompute auto",
}
