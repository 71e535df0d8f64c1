"""What each check of somebody's module says, from a step as it is and one with checkpointing switched off."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.compatibility import CHECKPOINT_WRAPPER_MODULE
from megaselect.errors import as_line
from megaselect.recomputation.any_model import AnyModelPlan
from megaselect.verification.differences import LOSS, differences
from megaselect.verification.module_run import ModuleRun, is_flagged
from megaselect.verification.module_state import Snapshot
from megaselect.verification.report import Check, Outcome, check
from megaselect.verification.step_watch import StepWatch

BACKWARD, RANDOM, BITS, SECOND_RUN, STATE, GRADIENTS, SAVES, RECIPES = (
    "backward",
    "random numbers",
    "same bits",
    "second run",
    "state",
    "gradients",
    "recomputes",
    "recipes",
)
SMALL = 1e-5  # of the largest gradient: what differences no longer show


def random_numbers(watch: StepWatch) -> Check:
    """Of the results that were drawn again, whether forward drew them."""
    count, again = watch.drawn, watch.redrawn
    once = f"; {count - again} drawn once, outside of what runs again" if count > again else ""
    return check(RANDOM, watch.faults, f"{again} drawn again, each the same{once}" if again else "none drawn again")


def second_run(as_is: ModuleRun, judged: Sequence[Check]) -> Iterator[Check]:
    """Where the second run departs from the first. Right gradients (judged) show that nothing that they need did.

    But for another dtype, unless the bits are the same: differences are taken in one dtype. And but for gradients too
    small to show it, as behind a layer's scale of 1e-6: where bits differ there, rounding does not explain it.
    """
    watch = as_is.watch
    if not watch.rerun.calls:
        return
    outcomes = {one.name: one.outcome for one in judged}
    unseen = _too_small(as_is.values, BITS in outcomes) if watch.departed else []
    if watch.cast and BITS not in outcomes:
        yield check(SECOND_RUN, watch.cast)
    elif not watch.changed or not set(outcomes.values()) <= {Outcome.PASSED, Outcome.WARNING}:
        yield check(SECOND_RUN, watch.changed, "each result is one that forward had")
    elif watch.departed and outcomes.get(BITS) is Outcome.WARNING:
        yield check(SECOND_RUN, watch.departed)
    elif unseen:
        detail = f"{watch.departed[0]}; what it does to {_names(unseen)} cannot be told: the gradient is too small"
        yield Check(SECOND_RUN, Outcome.NOT_CHECKED, detail)
    else:
        yield Check(SECOND_RUN, Outcome.WARNING, f"{watch.changed[0]}; no gradient shows it")


def _too_small(values: Mapping[str, Tensor | None], compared_by_bits: bool) -> list[str]:
    """The gradients in which a wrong one would not show: zeros, and by differences what is small beside the others."""
    sizes = {name: float(value.norm()) for name, value in values.items() if name != LOSS and value is not None}
    least = 0.0 if compared_by_bits else SMALL * max(sizes.values(), default=0.0)
    return [name for name, size in sizes.items() if size <= least]


def hidden_error(error: Exception) -> Check:
    """Of the step without checkpointing, where the one with it raised nothing."""
    if isinstance(error, torch.OutOfMemoryError):
        return Check(BITS, Outcome.NOT_CHECKED, f"without checkpointing there is not memory enough: {as_line(error)}")
    return check(BITS, [f"without checkpointing backward raises what checkpointing hides: {as_line(error)}"])


def present(
    values: Mapping[str, Tensor | None], others: Mapping[str, Tensor | None] | None = None
) -> dict[str, Tensor | None]:
    """Those of `others` (or `values`) that are there in `values`: what is lost is another check's."""
    return {name: (others or values)[name] for name, value in values.items() if value is not None}


def state_faults(as_is: ModuleRun, plain: ModuleRun) -> Iterator[str]:
    """A sentence for each buffer or attribute that ends elsewhere."""
    for fault in differences(as_is.state, plain.state):
        yield f"{fault} from without checkpointing: the second run updates it again"


def without_gradient(start: Snapshot, as_is: ModuleRun, plain: ModuleRun) -> Check:
    """Trainable parameters that training would leave as they are, and inputs that ask for a gradient and get none."""
    parameters = start.parameters()
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    trainable = [name for name in as_is.gradients if name not in frozen]
    missing = [name for name in trainable if as_is.values[name] is None]
    lost = [name for name in missing if plain.values[name] is not None]
    if lost:
        return check(GRADIENTS, [f"{_names(lost)}: without a gradient, which is there without checkpointing"])
    if missing and plain.rerun.calls:
        return check(GRADIENTS, [f"{_names(missing)}: without a gradient"])
    if missing:
        detail = f"{_names(missing)}: without a gradient, also without checkpointing"
        return Check(GRADIENTS, Outcome.WARNING, detail)
    inputs = [name for name in trainable if name not in parameters]
    among = f" and {len(inputs)} inputs" if inputs else ""
    return Check(GRADIENTS, Outcome.PASSED, f"all {len(trainable) - len(inputs)} trainable parameters{among} have one")


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def recomputes(model: nn.Module, as_is: ModuleRun, plain: ModuleRun) -> Check:
    """Whether anything ran again, and fewer bytes are kept for it."""
    kept, without = as_is.saved_bytes, plain.saved_bytes
    calls = as_is.rerun.calls.total()
    again = f"{calls} operators ran again, {as_is.rerun.flops:,} FLOPs"
    if plain.rerun.calls:
        return Check(SAVES, Outcome.PASSED, f"{again}; {kept:,} bytes saved for backward")
    saves = f"{kept:,} bytes saved for backward, {without:,} without checkpointing"
    if calls and kept >= without:
        return check(SAVES, [f"it saves nothing: {saves}; {again}"])
    if calls:
        return Check(SAVES, Outcome.PASSED, f"{again}; {saves}")
    if kept < without and not plain.regions:  # by operators that make things again inside themselves, as ours do
        return Check(SAVES, Outcome.PASSED, f"no operator ran again; {saves}")
    signs = list(_signs(model, plain))
    if signs:
        mode = "" if model.training else ", and the model is in eval mode"
        return check(SAVES, [f"it recomputes nothing: {', '.join(signs)}{mode}"])
    return Check(SAVES, Outcome.WARNING, "no checkpoint was met, and nothing ran again")


def recipes(plan: AnyModelPlan) -> Check:
    """Whether all that a plan would make again gave the same bits when that was tried, in forward."""
    remade = f"{plan.remade} tensors made again, each proved"
    if not plan.unproved:
        return Check(RECIPES, Outcome.PASSED, remade)
    saved = ", ".join(f"{name} ({count} times)" for name, count in plan.unproved.items())
    return Check(RECIPES, Outcome.WARNING, f"{remade}; saved since running it again gave other bits: {saved}")


def _signs(model: nn.Module, plain: ModuleRun) -> Iterator[str]:
    """Of checkpointing that somebody meant to have."""
    if plain.regions:
        yield f"{plain.regions} checkpointed regions ran in forward, and not again"
    flagged = len(list(_flagged(model)))
    if flagged and plain.flagged_ran:  # a step may drop every layer at random
        yield f"gradient_checkpointing is set on {flagged} modules"
    wrapper: Any = getattr(sys.modules.get(CHECKPOINT_WRAPPER_MODULE), "CheckpointWrapper", ())
    wrapped = sum(isinstance(module, wrapper) for module in model.modules())
    if wrapped:
        yield f"{wrapped} modules are in a checkpoint_wrapper"


def _flagged(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if is_flagged(module))


def notes(model: nn.Module, plain: ModuleRun, compiled: bool) -> Iterator[str]:
    """What the checks do not say of themselves."""
    if compiled:
        yield (
            "what torch.compile has compiled was held against differences: a compiler rounds otherwise, so "
            "that there are no bits to compare; what runs again is that of the uncompiled step"
        )
    if plain.regions and plain.rerun.calls:
        yield (
            f"{plain.regions} regions of torch's checkpoint were switched off for comparison; what somebody's own "
            "code runs again was held against differences"
        )
    if any(_flagged(model)) and getattr(getattr(model, "config", None), "use_cache", False):
        yield (
            "bytes without checkpointing are those of use_cache=False, as transformers sets it beside gradient "
            "checkpointing; the model without it fills a key-value cache in training too, and keeps more"
        )
