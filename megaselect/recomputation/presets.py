"""Recompute settings with names of their own; any setting as a name, in words and as flags. No torch."""

from __future__ import annotations

from megaselect.config import RecomputeConfig
from megaselect.recomputation.plan import RecomputePlan, describe_plan
from megaselect.recompute_modules import MODULES

# From what saves the most for backward to what saves the least.
PRESETS = {
    "none": RecomputeConfig(),
    "selective": RecomputeConfig(mode="selective"),
    "core_attn dropout": RecomputeConfig(mode="selective", modules=("core_attn", "dropout")),
    "all": RecomputeConfig(mode="selective", modules=MODULES),
    "full": RecomputeConfig(mode="full"),
    "full sqrt": RecomputeConfig(mode="full", method="sqrt"),
}
AUTO = "auto"  # the name of a setting that is planned


def setting_name(settings: RecomputeConfig) -> str:
    """The preset's name; else `softmax gelu`, `full uniform, 2 a chunk`, `all (layers 0-3)`; `auto`."""
    for name, preset in PRESETS.items():
        if _essence(preset) == _essence(settings):
            return name
    layers = f" (layers {settings.layers})" if settings.layers else ""
    if settings.mode == "selective":
        everything = set(settings.modules) == set(MODULES)
        return ("all" if everything else " ".join(settings.modules)) + layers
    if settings.mode == "full":
        count = {"uniform": f", {settings.num_layers or 1} a chunk", "block": f", first {settings.num_layers}"}
        return f"full {settings.method}{count.get(settings.method, '')}{layers}"
    return settings.mode


def describe_recompute(settings: RecomputeConfig, plan: RecomputePlan | None = None) -> str:
    """`none`, `selective: softmax, dropout`, `full`, with the layers if not all. plan: what auto has planned."""
    if settings.mode == AUTO and plan is not None:
        return f"auto: {describe_plan(plan)}"
    if settings.mode != "selective":
        return setting_name(settings)
    modules = "all" if set(settings.modules) == set(MODULES) else ", ".join(settings.modules)
    return f"selective: {modules}" + (f" (layers {settings.layers})" if settings.layers else "")


def setting_flags(settings: RecomputeConfig) -> str:
    """What asks for it on the command line."""
    words = [f"--recompute {settings.mode}"]
    if settings.mode == "selective" and set(settings.modules) != set(PRESETS["selective"].modules):
        everything = set(settings.modules) == set(MODULES)
        words.append(f"--recompute-modules {'all' if everything else ' '.join(settings.modules)}")
    if settings.mode == "full" and settings.method != "uniform":
        words.append(f"--recompute-method {settings.method}")
    if settings.num_layers is not None:
        words.append(f"--recompute-num-layers {settings.num_layers}")
    if settings.layers is not None:
        words.append(f"--recompute-layers {settings.layers}")
    return " ".join(words)


def setting_label(attention: str, recompute: RecomputeConfig) -> str:
    """What a row is called: `none`, `core_attn dropout`, `fused all`, `full sqrt`. unfused is not spelled out."""
    return ("" if attention == "unfused" else f"{attention} ") + setting_name(recompute)


def _essence(settings: RecomputeConfig) -> tuple[object, ...]:
    """What two settings share that do the same, in whichever order their modules were named."""
    if settings.mode == "selective":
        return settings.mode, frozenset(settings.modules), settings.layers
    if settings.mode == "full":
        return settings.mode, settings.method, settings.num_layers or 1, settings.layers
    return (settings.mode,)
