"""From a config to a model that is ready to train, in the order in which the parts compose."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from megaselect.devices import Placement, check_compile, check_kernels, free_bytes, resolve_placement
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.initialise import initialise
from megaselect.models.gpt.layer_times import measured_costs
from megaselect.models.gpt.model import GPT
from megaselect.planning.auto import AutoPlan, fastest_plan, problem_of
from megaselect.prediction.saved_bytes import check_saves
from megaselect.recomputation.plan import make_plan
from megaselect.units import parse_size

if TYPE_CHECKING:
    from megaselect.config import Config


def build_model(config: Config) -> GPT:
    """A GPT in training mode on the config's device and in its dtype; the weights depend on the seed alone.

    Raises DeviceError where the device or kernel backend is absent, RecomputeError for recompute settings that would
    save nothing, or for a budget that no plan meets.
    """
    return build_planned(config, resolve_placement(config.training))[0]


def build_planned(config: Config, placement: Placement) -> tuple[GPT, AutoPlan | None]:
    """The same at a placement, and with mode auto what was planned."""
    model = build_without_recompute(config, placement)
    automatic = plan_automatically(config, model) if config.recompute.mode == "auto" else None
    plan = automatic.plan if automatic else make_plan(config.recompute, config.model.num_layers)
    apply_recompute(model, plan, compiled=config.training.compile)
    return model, automatic


def build_without_recompute(config: Config, placement: Placement) -> GPT:
    """The same before any recompute setting or compilation is applied, though the settings are checked."""
    check_kernels(config.model, placement)
    if config.training.compile:
        check_compile(placement.device)
    check_saves(config, placement.element_bytes)
    model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens)
    initialise(model, config.model.init_std, config.training.seed)  # before the cast: every dtype rounds the same draw
    model.to(device=placement.device, dtype=placement.dtype)
    return model


def plan_automatically(config: Config, model: GPT) -> AutoPlan:
    """The fastest plan within recompute.memory, or within what the device has free, by times measured on a layer.

    Where everything can be kept nothing is measured.
    """
    weight = next(model.parameters())
    memory = config.recompute.memory
    budget = parse_size(memory, "--memory") if memory else free_bytes(weight.device)
    problem = problem_of(config, weight.element_size(), on_gpu=weight.device.type == "cuda")
    plan = fastest_plan(problem, lambda: measured_costs(model, config.training.micro_batch_size), budget)
    if weight.device.type == "cuda":
        torch.cuda.empty_cache()  # what the measurement took
    return plan
