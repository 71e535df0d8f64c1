"""What each kind of recomputation costs in time, measured on one layer of the real model with the real batch size."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from megaselect.devices import synchronise
from megaselect.models.gpt.apply_plan import INSIDE_FULL, layer_policy
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.model import GPT
from megaselect.planning.auto import ATTENTION_SETS, Costs
from megaselect.prediction.assumed_time import PICOSECONDS
from megaselect.recomputation.checkpoint import checkpointed
from megaselect.recomputation.policy import LayerPolicy

ROUNDS = 5
SECONDS_AT_MOST = 10.0  # but one round is always made

Run = Callable[[Tensor, Tensor], Tensor]


def measured_costs(model: GPT, batch: int) -> Costs:
    """Forward and backward of the first layer with each policy, in rounds; the least times, less that of keeping all.

    Uses no random state, and leaves no gradients. The layer's policy is not restored: apply a plan afterwards.
    """
    block = model.layers[0]
    weight = block.attention.qkv.weight
    shape = (model.config.seq_length, batch, model.config.hidden_size)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(weight.device, weight.dtype).requires_grad_()
    samples = torch.arange(batch, device=weight.device)
    seconds = _rounds({name: _timed(block, policy, run, x, samples) for name, (policy, run) in _runs(block).items()})
    for parameter in block.parameters():
        parameter.grad = None
    costs = {name: _cost(values, seconds["none"]) for name, values in seconds.items()}
    attention = {frozenset(modules): costs[_measured_name(model, modules)] for modules in ATTENTION_SETS}
    return Costs(attention, costs["layernorm"], costs["gelu"], costs["full"])


def _measured_name(model: GPT, modules: tuple[str, ...]) -> str:
    """Attention that keeps no scores has nothing to recompute but hidden masks."""
    if model.config.attention != "unfused":
        modules = tuple(name for name in modules if name == "dropout")
    return " ".join(modules) or "none"


def _runs(block: Block) -> dict[str, tuple[LayerPolicy, Run]]:
    """Name -> the policy of the layer, and how it runs."""
    sets = [*ATTENTION_SETS, ("layernorm",), ("gelu",)]
    runs: dict[str, tuple[LayerPolicy, Run]] = {
        " ".join(modules) or "none": (layer_policy(frozenset(modules), 0), block) for modules in sets
    }
    return {**runs, "full": (INSIDE_FULL, lambda x, samples: checkpointed("layers.0", block, x, samples))}


def _timed(block: Block, policy: LayerPolicy, run: Run, x: Tensor, samples: Tensor) -> Callable[[], float]:
    def once() -> float:
        block.set_policy(policy)
        started = _now(x.device)
        out = run(x, samples)
        torch.autograd.backward(out, torch.ones_like(out))
        return _now(x.device) - started

    return once


def _rounds(runs: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Seconds of each in every round, so that drift hits all alike. The first run of each only warms up."""
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
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
