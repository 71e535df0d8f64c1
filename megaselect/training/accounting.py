"""The bytes and FLOPs that a run's header, metrics and summary show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megaselect.recompute.flops import Flops, micro_batch_flops
from megaselect.recompute.ledger import Ledger
from megaselect.recompute.plan import make_plan
from megaselect.recompute.theory import Shape, bytes_per_layer, layer_tensors, stored_bytes
from megaselect.training.events import StoredReport

if TYPE_CHECKING:
    from megaselect.config import Config, RecomputeConfig

SELECTIVE_ALTERNATIVES = (("softmax", "dropout"), ("core_attn", "dropout"))


def step_flops(config: Config, element_bytes: int) -> Flops:
    """FLOPs of a whole optimizer step: every micro-batch of the global batch."""
    plan = make_plan(config.recompute, config.model.num_layers)
    micro = micro_batch_flops(Shape.of(config, element_bytes), plan)
    count = config.training.global_batch_size // config.training.micro_batch_size
    return Flops(micro.model * count, micro.hardware * count)


def stored_report(config: Config, element_bytes: int, ledger: Ledger) -> StoredReport:
    """Predicted against measured, and what other settings would keep in a layer."""
    shape = Shape.of(config, element_bytes)
    plan = make_plan(config.recompute, config.model.num_layers)
    measured = ledger.by_layer()
    measured.pop("", None)
    alternatives = {"none": sum(layer_tensors(shape, frozenset()).values())}
    for modules in SELECTIVE_ALTERNATIVES:
        alternatives[" ".join(modules)] = sum(layer_tensors(shape, frozenset(modules)).values())
    alternatives["full"] = shape.hidden_bytes
    return StoredReport(
        predicted=bytes_per_layer(shape, plan),
        measured=measured,
        predicted_total=stored_bytes(shape, plan),
        measured_total=ledger.total,
        alternatives=alternatives,
    )


def describe_recompute(settings: RecomputeConfig) -> str:
    """`none`, `selective: softmax, dropout`, `full: uniform, 2 layers a chunk`, with the layers if not all."""
    layers = f" (layers {settings.layers})" if settings.layers else ""
    if settings.mode == "none":
        return "none"
    if settings.mode == "selective":
        return f"selective: {', '.join(settings.modules)}{layers}"
    count = {"uniform": f", {settings.num_layers or 1} a chunk", "block": f", first {settings.num_layers}", "sqrt": ""}
    return f"full: {settings.method}{count[settings.method]}{layers}"
