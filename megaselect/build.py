"""From a config to a model that is ready to train, in the order in which the parts compose."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from megaselect.devices import Placement, check_compile, check_kernels, free_bytes, resolve_placement
from megaselect.distributed.distribution import Distribution
from megaselect.distributed.layout import Layout
from megaselect.distributed.ranks import Ranks
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.initialise import initialise
from megaselect.models.gpt.layer_times import measured_costs
from megaselect.models.gpt.model import GPT
from megaselect.planning.auto import AutoPlan, Costs, fastest_plan, problem_of
from megaselect.prediction.saved_bytes import check_saves
from megaselect.recomputation.plan import make_plan
from megaselect.units import parse_size

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.models.gpt.block import Block


def build_model(config: Config) -> GPT:
    """A GPT in training mode on the config's device and in its dtype; the weights depend on the seed alone.

    Raises DeviceError where the device or kernel backend is absent, RecomputeError for recompute settings that would
    save nothing, or for a budget that no plan meets.
    """
    return build_planned(config, resolve_placement(config.training))[0]


def build_planned(config: Config, placement: Placement, ranks: Ranks | None = None) -> tuple[GPT, AutoPlan | None]:
    """The same at a placement, and with mode auto what was planned."""
    model = build_without_recompute(config, placement)
    automatic = plan_automatically(config, model.blocks[0], ranks) if config.recompute.mode == "auto" else None
    _apply(config, model, automatic)
    return model, automatic


def build_distributed(config: Config, placement: Placement, ranks: Ranks) -> tuple[GPT, AutoPlan | None, Distribution]:
    """The same on this rank, with how it is spread. In this order: plan, compile, then cut.

    A plan changes what a layer's forward is, and a compiled layer is one; FSDP2 gathers parameters around whatever a
    layer's forward is by then.
    """
    layout = Layout.of(config.parallel, ranks.size, ranks.rank)
    layout.check(config)
    if layout.ranks == 1:
        return *build_planned(config, placement), Distribution()
    from megaselect.distributed.data_parallel import distribute  # FSDP2 takes a second to import

    if layout.shards == 1:
        model, automatic = build_planned(config, placement, ranks)
    else:
        model, automatic = _build_to_cut(config, placement, ranks)
    spread = distribute(model, model.blocks, layout, config.parallel, placement)
    return model, automatic, spread


def _build_to_cut(config: Config, placement: Placement, ranks: Ranks) -> tuple[GPT, AutoPlan | None]:
    """Weights in fp32 on the CPU, from where FSDP2 takes them part by part, rounded as if they were in the dtype."""
    _check(config, placement)
    model = _initialised(config)
    model.to(placement.dtype).float()
    automatic = None
    if config.recompute.mode == "auto":
        layer = copy.deepcopy(model.blocks[0]).to(placement.device, placement.dtype)
        automatic = plan_automatically(config, layer, ranks)
    _apply(config, model, automatic)
    return model, automatic


def build_without_recompute(config: Config, placement: Placement) -> GPT:
    """The model before any recompute setting or compilation is applied, though the settings are checked."""
    _check(config, placement)
    return _initialised(config).to(device=placement.device, dtype=placement.dtype)


def _check(config: Config, placement: Placement) -> None:
    check_kernels(config.model, placement)
    if config.training.compile:
        check_compile(placement.device)
    check_saves(config, placement.element_bytes)


def _initialised(config: Config) -> GPT:
    """In fp32 on the CPU, before any cast: every dtype rounds the same draw."""
    model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens)
    initialise(model, config.model.init_std, config.training.seed)
    return model


def _apply(config: Config, model: GPT, automatic: AutoPlan | None) -> None:
    plan = automatic.plan if automatic else make_plan(config.recompute, config.model.num_layers)
    apply_recompute(model, plan, compiled=config.training.compile)


def plan_automatically(config: Config, layer: Block, ranks: Ranks | None = None) -> AutoPlan:
    """The fastest plan within recompute.memory, or within what the device has free, by times measured on a layer.

    Where everything can be kept nothing is measured. Ranks plan for the one that has the least, by the first one's
    times: all have one plan.
    """
    ranks, weight, memory = ranks or Ranks(), layer.attention.qkv.weight, config.recompute.memory
    budget = min(ranks.gather_values(parse_size(memory, "--memory") if memory else free_bytes(weight.device)))
    layout = Layout.of(config.parallel, ranks.size, ranks.rank)
    problem = problem_of(config, weight.element_size(), weight.device.type == "cuda", layout)

    def costs() -> Costs:
        measured = measured_costs(layer, config.model, config.training.micro_batch_size)
        return Costs.from_list(ranks.from_first(measured.to_list()))

    plan = fastest_plan(problem, costs, budget)
    if weight.device.type == "cuda":
        torch.cuda.empty_cache()  # what the measurement took
    return plan
