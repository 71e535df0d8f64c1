"""The bytes and FLOPs that a run's header, metrics and summary show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from megaselect.config.schema import MODULES
from megaselect.prediction.flops import Flops, micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape, bytes_per_layer, layer_tensors, saved_bytes
from megaselect.recomputation.plan import describe_plan
from megaselect.training.events import SavedReport

if TYPE_CHECKING:
    from megaselect.config import Config, RecomputeConfig
    from megaselect.ledger import Ledger
    from megaselect.recomputation.plan import RecomputePlan

SELECTIVE_SETTINGS = {
    "softmax dropout": ("softmax", "dropout"),
    "core_attn dropout": ("core_attn", "dropout"),
    "all": MODULES,
}


def step_flops(config: Config, element_bytes: int, plan: RecomputePlan) -> Flops:
    """FLOPs of a whole optimizer step: every micro-batch of the global batch."""
    micro = micro_batch_flops(LayerShape.of(config, element_bytes), plan)
    count = config.training.global_batch_size // config.training.micro_batch_size
    return Flops(micro.model * count, micro.hardware * count)


def saved_report(config: Config, element_bytes: int, plan: RecomputePlan, ledger: Ledger) -> SavedReport:
    """Predicted against measured, and what other settings would keep in a layer."""
    shape = LayerShape.of(config, element_bytes)
    measured = ledger.by_layer()
    measured.pop("", None)
    return SavedReport(
        predicted=bytes_per_layer(shape, plan),
        measured=measured,
        predicted_total=saved_bytes(shape, plan),
        measured_total=ledger.total,
        alternatives=_alternatives(shape),
        setting=setting_name(config.recompute),
    )


def setting_name(settings: RecomputeConfig) -> str:
    """A recompute setting as the keys of SavedReport.alternatives spell it."""
    if settings.mode != "selective":
        return settings.mode
    return "all" if set(settings.modules) == set(MODULES) else " ".join(settings.modules)


def _alternatives(shape: LayerShape) -> dict[str, int]:
    """Setting -> bytes a layer: with the run's attention, and with fused attention where scores are in memory."""
    unfused = shape.attention == "unfused"
    alternatives = {"none": _layer_bytes(shape, ())}
    for name, modules in SELECTIVE_SETTINGS.items():
        if unfused or name != "core_attn dropout":  # which is `softmax dropout` where no scores are in memory
            alternatives[name] = _layer_bytes(shape, modules)
    alternatives["full"] = shape.hidden_bytes
    if unfused:
        fused = replace(shape, attention="fused")
        alternatives |= {"fused none": _layer_bytes(fused, ()), "fused all": _layer_bytes(fused, MODULES)}
    return alternatives


def _layer_bytes(shape: LayerShape, modules: tuple[str, ...]) -> int:
    return sum(layer_tensors(shape, frozenset(modules)).values())


def describe_recompute(settings: RecomputeConfig, plan: RecomputePlan | None = None) -> str:
    """`none`, `selective: softmax, dropout`, `full: uniform, 2 layers a chunk`, with the layers if not all.

    plan: what auto has planned.
    """
    layers = f" (layers {settings.layers})" if settings.layers else ""
    if settings.mode == "none":
        return "none"
    if settings.mode == "auto":
        return "auto" if plan is None else f"auto: {describe_plan(plan)}"
    if settings.mode == "selective":
        modules = "all" if set(settings.modules) == set(MODULES) else ", ".join(settings.modules)
        return f"selective: {modules}{layers}"
    count = {"uniform": f", {settings.num_layers or 1} a chunk", "block": f", first {settings.num_layers}", "sqrt": ""}
    return f"full: {settings.method}{count[settings.method]}{layers}"
