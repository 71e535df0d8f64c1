"""Every recompute setting of a config, predicted, and which of them to take. No torch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from megaselect.config import Config, ModelConfig, RecomputeConfig
from megaselect.errors import ConfigError, DeviceError
from megaselect.estimation.advice import advise
from megaselect.estimation.rows import Case, EstimateRow, make_row, planned_row
from megaselect.estimation.target import Target, resolve_target
from megaselect.kernels.limits import refused_attention
from megaselect.planning.auto import assumed_costs, fastest_plan, problem_of
from megaselect.prediction.parallel import Parallel
from megaselect.recomputation.presets import AUTO, PRESETS, setting_name
from megaselect.recompute_modules import MODULES

CONFIGURED = "as configured"


@dataclass(frozen=True)
class Estimate:
    """rows: attention choice -> setting -> its prediction. own: the attention and name of the config's own setting."""

    case: Case
    rows: dict[str, dict[str, EstimateRow]]
    own: tuple[str, str]
    advice: str

    @property
    def something_fits(self) -> bool:
        """Whether any setting's peak is within the target's memory."""
        usable = self.case.target.usable_bytes
        return any(row.rank.peak.bytes <= usable for rows in self.rows.values() for row in rows.values())


def estimate(
    config: Config, device: str | None = None, memory: str | None = None, parallel: Parallel | None = None
) -> Estimate:
    """Predict every setting of a config for a device, by default the config's own.

    device: auto, cpu, cuda or a GPU's name in megaselect/gpus.py. memory: what a step may hold, such as 24GiB; by
    default recompute.memory, else the device's. Raises DeviceError for an unknown device, ConfigError where a layout
    does not divide the model, RecomputeError where mode auto meets no budget.
    """
    target = resolve_target(device or config.training.device, memory or config.recompute.memory, config.training.dtype)
    return estimate_for(config, target, parallel)


def estimate_for(config: Config, target: Target, parallel: Parallel | None = None) -> Estimate:
    """The same for a target that is known. DeviceError also where training would refuse the config's attention."""
    case = Case(config, target, parallel or Parallel())
    case.parallel.check(config)
    refusal = _refusal(config.model, target, config.model.attention)
    if refusal:
        raise DeviceError(refusal)
    attentions = [choice for choice in ("unfused", "fused", "sdpa") if not _refusal(config.model, target, choice)]
    rows = {attention: _rows(case, attention) for attention in attentions}
    own = (config.model.attention, _own_name(config.recompute))
    return Estimate(case, rows, own, advise(case, rows))


def _refusal(model: ModelConfig, target: Target, attention: str) -> str | None:
    """Why training would refuse this attention; None where it takes it."""
    if attention == "sdpa" and model.attention_dropout_p > 0:
        return "attention sdpa drops nothing"
    on_triton = model.kernel_backend == "triton" or (model.kernel_backend == "auto" and target.on_gpu)
    backend = "triton" if on_triton else "torch"
    return refused_attention(attention, backend, model.hidden_size, model.num_attention_heads)


def _rows(case: Case, attention: str) -> dict[str, EstimateRow]:
    rows = {name: make_row(case, name, attention, settings) for name, settings in PRESETS.items()}
    own, name = case.config.recompute, _own_name(case.config.recompute)
    is_own = attention == case.config.model.attention
    if is_own and name not in rows and own.mode != "auto":
        rows[name] = make_row(case, name, attention, own)
    if (is_own and own.mode == "auto") or _auto_has_a_point(case, rows):
        rows[AUTO] = _automatic(case, attention, rows)
    return rows


def _auto_has_a_point(case: Case, rows: dict[str, EstimateRow]) -> bool:
    """Where not everything can be kept, yet something fits."""
    fitting = {row.name for row in rows.values() if row.rank.peak.bytes <= case.target.usable_bytes}
    plannable = case.parallel.is_run and case.target.speed is not None
    return plannable and bool(fitting) and "none" not in fitting


def _own_name(recompute: RecomputeConfig) -> str:
    """The row that the config's own recompute section is."""
    name = setting_name(recompute)
    return name if name in PRESETS or name == AUTO else CONFIGURED


def _automatic(case: Case, attention: str, others: dict[str, EstimateRow]) -> EstimateRow:
    """What auto would plan, by the times that are assumed. For another micro-batch it would plan anew: the largest is
    at least that of any other row.
    """
    config, target = case.config, case.target
    if not case.parallel.is_run:
        raise ConfigError(
            "--recompute auto plans for layouts that train: leave out --tensor-parallel and --pipeline-parallel"
        )
    if target.speed is None:
        raise ConfigError(f"--recompute auto: no speed is on file for {target.name}; name a GPU by --device")
    problem = problem_of(config, target.element_bytes, target.on_gpu, case.sharing.layout)
    problem = replace(problem, shape=replace(problem.shape, attention=attention))
    costs = assumed_costs(problem.shape, target.speed)
    plan = fastest_plan(problem, lambda: costs, target.usable_bytes).plan
    settings = RecomputeConfig(mode="auto", memory=config.recompute.memory)
    row = planned_row(case, AUTO, attention, settings, plan)
    return replace(row, largest_micro_batch=max(other.largest_micro_batch for other in others.values()))


def module_sets(case: Case, attention: str) -> dict[str, EstimateRow]:
    """What selective does with every non-empty set of modules."""
    sets = itertools.chain.from_iterable(itertools.combinations(MODULES, count) for count in range(1, len(MODULES) + 1))
    settings = {" ".join(modules): RecomputeConfig(mode="selective", modules=modules) for modules in sets}
    return {name: make_row(case, name, attention, setting) for name, setting in settings.items()}
