"""Whether a setting fits into a CPU's memory, said before it is tried: beyond it, the machine would swap. No torch."""

from __future__ import annotations

from megaselect.config import Config
from megaselect.estimation.target import resolve_target
from megaselect.planning.auto import problem_of
from megaselect.prediction.peak import step_peak
from megaselect.recomputation.plan import make_plan
from megaselect.units import size


def shortage(config: Config) -> str | None:
    """What is missing. None where it fits; for auto, which plans for a budget; and on a GPU, which says so itself."""
    if config.recompute.mode == "auto" or config.training.device == "cuda":
        return None
    target = resolve_target(config.training.device, None, config.training.dtype)
    if target.on_gpu:
        return None
    problem = problem_of(config, target.element_bytes, on_gpu=False)
    plan = make_plan(config.recompute, config.model.num_layers)
    peak = step_peak(problem.shape, plan, problem.static, problem.situation).bytes
    if peak <= target.usable_bytes:
        return None
    return f"a step's tensors would hold {size(peak)}, and {size(target.usable_bytes)} is available"
