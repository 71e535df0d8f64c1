"""What each kind of recomputation costs in time, measured on one layer of the real model with the real batch size."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from megaselect.devices import synchronise
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.layer_policy import INSIDE_FULL, give_policy, layer_policy, outputs_remade_in
from megaselect.planning.auto import ATTENTION_SETS, Costs
from megaselect.prediction.assumed_time import PICOSECONDS
from megaselect.recomputation.checkpoint import checkpointed
from megaselect.recomputation.policy import LayerPolicy
from megaselect.recompute_modules import OTHER_MODULES, declared

if TYPE_CHECKING:
    from megaselect.config import ModelConfig

ROUNDS = 5
SECONDS_AT_MOST = 10.0  # but one round is always made

Run = Callable[[Tensor, Tensor], Tensor]
LayerModules = frozenset[str] | None  # what selective recomputes; None: the whole layer
NOTHING: frozenset[str] = frozenset()


def measured_costs(block: Block, settings: ModelConfig, batch: int) -> Costs:
    """Forward and backward of a layer with each policy, in rounds; the least times, less that of keeping all.

    Uses no random state, and leaves no gradients. The layer's policy is not restored: apply a plan afterwards.
    """
    weight = block.attention.qkv.weight
    shape = (settings.seq_length, batch, settings.hidden_size)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(weight.device, weight.dtype).requires_grad_()
    samples = torch.arange(batch, device=weight.device)
    seconds = _rounds({name: _timed(block, policy, run, x, samples) for name, (policy, run) in _runs(block).items()})
    for parameter in block.parameters():
        parameter.grad = None
    costs = {run: _cost(values, seconds[NOTHING]) for run, values in seconds.items()}
    attention = {modules: costs[_in_use(settings, modules)] for modules in ATTENTION_SETS}
    return Costs(attention, {name: costs[frozenset({name})] for name in OTHER_MODULES}, costs[None])


def _in_use(settings: ModelConfig, modules: frozenset[str]) -> frozenset[str]:
    """The set that is measured for `modules`: where attention writes no scores, some have nothing to do."""
    return frozenset(module.name for module in declared(modules, settings.attention))


def _runs(block: Block) -> dict[LayerModules, tuple[LayerPolicy, Run]]:
    """The policy of the layer and how it runs, for each set of modules."""

    def run(modules: frozenset[str], x: Tensor, samples: Tensor) -> Tensor:
        with outputs_remade_in(block, 0, modules):
            return block(x, samples)

    sets = [*ATTENTION_SETS, *(frozenset({name}) for name in OTHER_MODULES)]
    runs: dict[LayerModules, tuple[LayerPolicy, Run]] = {
        modules: (layer_policy(modules, 0), functools.partial(run, modules)) for modules in sets
    }
    return {**runs, None: (INSIDE_FULL, lambda x, samples: checkpointed("layers.0", block, x, samples))}


def _timed(block: Block, policy: LayerPolicy, run: Run, x: Tensor, samples: Tensor) -> Callable[[], float]:
    def once() -> float:
        give_policy(block, policy)
        started = _now(x.device)
        out = run(x, samples)
        torch.autograd.backward(out, torch.ones_like(out))
        return _now(x.device) - started

    return once


def _rounds(runs: dict[LayerModules, Callable[[], float]]) -> dict[LayerModules, list[float]]:
    """Seconds of each in every round, so that drift hits all alike. The first run of each only warms up."""
    for run in runs.values():
        run()
    seconds: dict[LayerModules, list[float]] = {name: [] for name in runs}
    started = time.perf_counter()
    for done in range(ROUNDS):
        if done and time.perf_counter() - started > SECONDS_AT_MOST:
            break
        for name, run in runs.items():
            seconds[name].append(run())
    return seconds


def _cost(values: list[float], kept_all: list[float]) -> int:
    """Picoseconds between the fastest rounds: whatever else the machine does only ever adds time. Never less than
    nothing: noise must not make a recomputation look like a gain.
    """
    return max(round((min(values) - min(kept_all)) * PICOSECONDS), 0)


def _now(device: torch.device) -> float:
    synchronise(device)
    return time.perf_counter()
