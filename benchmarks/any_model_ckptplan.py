"""ckptplan: whole layers are checkpointed or not, by a knapsack over what each saves and takes again.

On a CPU it measures no bytes and refuses to plan: the bytes of each layer are our ledger's here. It applies a plan to
chains of modules alone: the layers that it picks are checkpointed by transformers' own switch, which is the same
checkpoint of torch's.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

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


class _Pass(NamedTuple):
    """A forward pass of the model. calls: what each layer got, by path; saved: bytes by layer; outside: of none."""

    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
    saved: dict[str, int]
    outside: int


def planned(saved: int, model: nn.Module, batch: Batch) -> Forward:
    """A plan that is to save so many bytes. Raises ModuleNotFoundError without the package, and its own errors."""
    import ckptplan

    layers = layers_of(model)
    seen = _observed(model, layers, batch)
    links = nn.ModuleList(_Link(layer, seen.calls[path][0][1:], seen.calls[path][1]) for path, layer in layers.items())
    blocks = ckptplan.declare_blocks(links, list(zip(layers, links, strict=True)))
    plan = ckptplan.plan_checkpoints(
        _profiles(blocks, seen),
        blocks,
        target_kind="activation_budget_bytes",
        target_value=max(saved - seen.outside, 0),
    )
    checkpointed(model, batch)
    for decision in plan.decisions:
        layers[decision.block_id].gradient_checkpointing = decision.checkpointed
    return model


def _observed(model: nn.Module, layers: dict[str, nn.Module], batch: Batch) -> _Pass:
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note(path: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] = args, kwargs

    handles = [
        layer.register_forward_pre_hook(functools.partial(note, path), with_kwargs=True)
        for path, layer in layers.items()
    ]
    with ledger.record(model) as rows:
        model(**batch)
    for handle in handles:
        handle.remove()
    by_layer = rows.by_layer()
    return _Pass(calls, by_layer, rows.total - sum(by_layer[path] for path in layers))


def _profiles(blocks: Any, seen: _Pass) -> list[Any]:
    """ckptplan's times, and our bytes."""
    import ckptplan

    x = seen.calls[blocks[0].block_id][0][0].detach()
    timed = ckptplan.profile_blocks(blocks, (x,), device=x.device, dtype=x.dtype, num_warmup=1, num_trials=TRIALS)
    return [
        dataclasses.replace(
            profile,
            timing_only=False,
            activation_bytes_estimate=seen.saved[profile.block_id],
            activation_bytes_method="isolated_forward_delta",
        )
        for profile in timed
    ]
