"""What each check of somebody's module says, from a step as it is and one with checkpointing switched off."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.compatibility import CHECKPOINT_WRAPPER_MODULE
from megaselect.verification.differences import differences
from megaselect.verification.module_run import ModuleRun, as_line, is_flagged
from megaselect.verification.report import Check, Outcome, check
from megaselect.verification.step_watch import StepWatch

BACKWARD, RANDOM, BITS, SECOND_RUN, STATE, GRADIENTS, SAVES = (
    "backward",
    "random numbers",
    "same bits",
    "second run",
    "state",
    "gradients",
    "recomputes",
)


def random_numbers(watch: StepWatch) -> Check:
    """Of the results that were drawn again, whether forward drew them."""
    count, again = watch.drawn, watch.redrawn
    once = f"; {count - again} drawn once, outside of what runs again" if count > again else ""
    return check(RANDOM, watch.faults, f"{again} drawn again, each the same{once}" if again else "none drawn again")


def second_run(watch: StepWatch, judged: Sequence[Check]) -> Iterator[Check]:
    """Where the second run departs from the first. Right gradients (judged) show that nothing that they need did.

    But for another dtype, unless the bits are the same: differences are taken in one dtype.
    """
    if not watch.rerun.calls:
        return
    right = all(one.outcome in (Outcome.PASSED, Outcome.WARNING) for one in judged)
    if watch.cast and not any(one.name == BITS for one in judged):
        yield check(SECOND_RUN, watch.cast)
    elif watch.changed and right:
        yield Check(SECOND_RUN, Outcome.WARNING, f"{watch.changed[0]}; no gradient shows it")
    else:
        yield check(SECOND_RUN, watch.changed, "each result is one that forward had")


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


def without_gradient(model: nn.Module, as_is: ModuleRun, plain: ModuleRun) -> Check:
    """Trainable parameters that training would leave as they are."""
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    missing = [name for name in trainable if as_is.values[name] is None]
    lost = [name for name in missing if plain.values[name] is not None]
    if lost:
        return check(GRADIENTS, [f"{_names(lost)}: without a gradient, which is there without checkpointing"])
    if missing and plain.rerun.calls:
        return check(GRADIENTS, [f"{_names(missing)}: without a gradient"])
    if missing:
        detail = f"{_names(missing)}: without a gradient, also without checkpointing"
        return Check(GRADIENTS, Outcome.WARNING, detail)
    return Check(GRADIENTS, Outcome.PASSED, f"all {len(trainable)} trainable parameters have one")


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def recomputes(model: nn.Module, as_is: ModuleRun, plain: ModuleRun) -> Check:
    """Whether anything ran again, and fewer bytes are kept for it."""
    kept, without = as_is.stored_bytes, plain.stored_bytes
    calls = as_is.rerun.calls.total()
    again = f"{calls} operators ran again, {as_is.rerun.flops:,} FLOPs"
    if plain.rerun.calls:
        return Check(SAVES, Outcome.PASSED, f"{again}; {kept:,} bytes kept for backward")
    saves = f"{kept:,} bytes kept for backward, {without:,} without checkpointing"
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
