"""ckptplan: whole layers are checkpointed or not, by a knapsack over what each saves and takes again.

On a CPU it measures no bytes and refuses to plan: the bytes of each layer are our ledger's here. It applies a plan to
chains of modules alone: the layers that it picks are checkpointed by transformers' own switch, which is the same
checkpoint of torch's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.any_model_shapes import Batch
from benchmarks.any_model_ways import Forward, checkpointed, layers_of
from megaselect import ledger

CKPTPLAN = "ckptplan"
TRIALS = 3


class _Link(nn.Module):
    """A layer with what it gets besides its input."""

    def __init__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.layer, self.args, self.kwargs = layer, args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        output = self.layer(x, *self.args, **self.kwargs)
        return output[0] if isinstance(output, tuple) else output


def planned(saved: int, model: nn.Module, batch: Batch) -> Forward:
    """A plan that is to save so many bytes. Raises ModuleNotFoundError without the package, and its own errors."""
    import ckptplan

    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    layers = layers_of(model)
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, path=path: calls.__setitem__(path, (args, kwargs)), with_kwargs=True
        )
        for path, layer in layers.items()
    ]
    with ledger.record(model) as rows:
        model(**batch)
    for handle in handles:
        handle.remove()
    by_layer = rows.by_layer()
    outside = rows.total - sum(by_layer[path] for path in layers)
    first = calls[next(iter(layers))][0][0].detach()
    links = nn.ModuleList(_Link(layer, calls[path][0][1:], calls[path][1]) for path, layer in layers.items())
    blocks = ckptplan.declare_blocks(links, list(zip(layers, links, strict=True)))
    profiles = ckptplan.profile_blocks(
        blocks, (first,), device=first.device, dtype=torch.float32, num_warmup=1, num_trials=TRIALS
    )
    known = [
        dataclasses.replace(
            profile,
            timing_only=False,
            activation_bytes_estimate=by_layer[profile.block_id],
            activation_bytes_method="isolated_forward_delta",
        )
        for profile in profiles
    ]
    plan = ckptplan.plan_checkpoints(
        known, blocks, target_kind="activation_budget_bytes", target_value=max(saved - outside, 0)
    )
    checkpointed(model, batch)
    for decision in plan.decisions:
        layers[decision.block_id].gradient_checkpointing = decision.checkpointed
    return model
