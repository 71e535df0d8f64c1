"""The bytes and FLOPs that a run's header, metrics and summary show."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from megaselect.prediction.flops import Flops, micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape, bytes_per_layer, saved_bytes
from megaselect.recomputation.plan import make_plan
from megaselect.recomputation.presets import PRESETS, setting_name
from megaselect.recompute_modules import declared
from megaselect.training.events import SavedReport

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.ledger import Ledger
    from megaselect.recomputation.plan import RecomputePlan


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


def _alternatives(shape: LayerShape) -> dict[str, int]:
    """Preset -> bytes a layer: with the run's attention, and with fused attention where scores are in memory."""
    alternatives: dict[str, int] = {}
    alike = set()  # where no scores are in memory, some presets are one and the same
    for name, settings in PRESETS.items():
        plan = make_plan(settings, num_layers=1)
        used = frozenset(module.name for module in declared(plan.modules[0], shape.attention))
        if (plan.chunks, used) not in alike:
            alternatives[name] = _layer_bytes(shape, plan)
        alike.add((plan.chunks, used))
    if shape.attention == "unfused":
        fused = replace(shape, attention="fused")
        for name in ("none", "all"):
            alternatives[f"fused {name}"] = _layer_bytes(fused, make_plan(PRESETS[name], num_layers=1))
    return alternatives


def _layer_bytes(shape: LayerShape, plan: RecomputePlan) -> int:
    return sum(bytes_per_layer(shape, plan).values())
