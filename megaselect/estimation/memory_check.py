"""Whether a device has the memory for what is asked, said before a model is built that would not fit. No torch."""

from __future__ import annotations

from megaselect.config import Config
from megaselect.errors import VerificationError
from megaselect.estimation.target import resolve_target
from megaselect.planning.auto import problem_of
from megaselect.prediction.peak import step_peak
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.prediction.weights import parameter_count
from megaselect.recomputation.plan import make_plan, no_recompute
from megaselect.units import size

FP64_BYTES = 8


def missing_for_training(config: Config) -> str | None:
    """What a step lacks on a CPU, which would swap. None where it fits, for auto, which plans for a budget, and on a
    GPU, which says so itself.
    """
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


def check_memory_to_verify(config: Config, element_bytes: int, free_bytes: int) -> None:
    """Raises VerificationError where less is free than verifying holds at least: weights and two sets of gradients in
    the run's dtype, of `element_bytes`, the same model and its gradients in fp64, and what `none` saves for backward.
    """
    shape, layers = LayerShape.of(config, element_bytes), config.model.num_layers
    each = 3 * element_bytes + 2 * FP64_BYTES
    needed = parameter_count(shape, layers) * each + saved_bytes(shape, no_recompute(layers))
    if needed > free_bytes:
        raise VerificationError(
            f"verifying holds at least {size(needed)}, and {size(free_bytes)} is free: take fewer layers "
            "(--model.num-layers 2), a smaller --training.micro-batch-size or a shorter --model.seq-length; "
            "megaselect estimate needs no memory for it"
        )
