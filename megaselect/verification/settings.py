"""Which recompute settings and attention choices of a config are verified."""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.build import plan_automatically
from megaselect.config import Config, ModelConfig, RecomputeConfig
from megaselect.errors import RecomputeError
from megaselect.models.gpt.model import GPT
from megaselect.prediction.saved_bytes import check_saves
from megaselect.recomputation.plan import RecomputePlan, make_plan
from megaselect.recomputation.presets import PRESETS
from megaselect.recompute_modules import MODULES

OWN = "the config's own"
SETTINGS = {
    "none": PRESETS["none"],
    **{name: RecomputeConfig(mode="selective", modules=(name,)) for name in MODULES},
    **PRESETS,
}


@dataclass(frozen=True)
class VerifiedSetting:
    """A recompute setting to verify under one attention. left_out: why it cannot be, or need not; else empty."""

    name: str
    plan: RecomputePlan
    left_out: str = ""


def settings_of(config: Config, model: GPT, own: RecomputeConfig) -> list[VerifiedSetting]:
    """Every mode and module set, each plan once, then the setting `own` where that is another one.

    config: with the attention of `model`. Raises RecomputeError where `own` is auto and no plan fits its budget.
    """
    layers, element_bytes = config.model.num_layers, next(model.parameters()).element_size()
    chosen: list[VerifiedSetting] = []
    for name, settings in {**SETTINGS, OWN: own}.items():
        asked = config.model_copy(update={"recompute": settings})
        plan = (
            plan_automatically(asked, model.blocks[0]).plan if settings.mode == "auto" else make_plan(settings, layers)
        )
        if all(_parts(plan) != _parts(other.plan) for other in chosen):
            chosen.append(VerifiedSetting(name, plan, _saves_nothing(asked, element_bytes)))
    return chosen


def _parts(plan: RecomputePlan) -> tuple[object, ...]:
    """What a plan does, whatever the mode that it came from."""
    return plan.modules, plan.chunks, plan.recompute_embedding_mask


def attention_choices(model: ModelConfig) -> list[str]:
    """unfused first, against which the others are held."""
    return ["unfused", "fused", *(["sdpa"] if model.attention_dropout_p == 0 else [])]


def with_attention(config: Config, attention: str) -> Config:
    """The config with another attention, without recomputation, uncompiled."""
    overrides = {"model.attention": attention, "recompute.mode": "none", "training.compile": False}
    return Config.from_dict(config.to_dict(), overrides=overrides)


def _saves_nothing(config: Config, element_bytes: int) -> str:
    try:
        check_saves(config, element_bytes)
    except RecomputeError as error:
        reason = str(error).partition(": ")[2].partition("; use ")[0]
        return f"saves nothing here: {reason}"
    return ""
