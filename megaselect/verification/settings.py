"""Which recompute settings and attention choices of a config are verified."""

from __future__ import annotations

from megaselect.config import Config
from megaselect.config.schema import MODULES, RecomputeConfig
from megaselect.errors import RecomputeError
from megaselect.recompute.plan import RecomputePlan, make_plan
from megaselect.recompute.theory import check_saves


def _selective(*modules: str) -> RecomputeConfig:
    return RecomputeConfig(mode="selective", modules=modules)


SETTINGS = {
    "none": RecomputeConfig(),
    **{module: _selective(module) for module in MODULES},
    "softmax dropout": _selective("softmax", "dropout"),
    "core_attn dropout": _selective("core_attn", "dropout"),
    "all": _selective(*MODULES),
    "full": RecomputeConfig(mode="full"),
    "full sqrt": RecomputeConfig(mode="full", method="sqrt"),
}


def settings_of(config: Config) -> dict[str, RecomputeConfig]:
    """Every mode and module set, each plan once, and the config's own setting where it is another one."""
    candidates = {**SETTINGS, "the config's own": config.recompute}
    plans: list[RecomputePlan] = []
    chosen = {}
    for name, settings in candidates.items():
        plan = make_plan(settings, config.model.num_layers)
        if plan not in plans:
            plans.append(plan)
            chosen[name] = settings
    return chosen


def attention_choices(config: Config) -> list[str]:
    """unfused first, against which the others are held."""
    return ["unfused", "fused", *(["sdpa"] if config.model.attention_dropout_p == 0 else [])]


def with_attention(config: Config, attention: str) -> Config:
    """The config with another attention, without recomputation, uncompiled."""
    overrides = {"model.attention": attention, "recompute.mode": "none", "training.compile": False}
    return Config.from_dict(config.to_dict(), overrides=overrides)


def with_recompute(config: Config, settings: RecomputeConfig) -> Config:
    """The config with another recompute setting."""
    return config.model_copy(update={"recompute": settings})


def saves_nothing(config: Config, element_bytes: int) -> str:
    """Why the config's recompute setting would save nothing; "" where it saves something."""
    try:
        check_saves(config, element_bytes)
    except RecomputeError as error:
        return str(error).partition(": ")[2].partition("; use ")[0]
    return ""
