"""Any nn.Module with checkpointing of any make: is it the same training as without?"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.compatibility import CHECKPOINT_WRAPPER_MODULE
from megaselect.verification import directional
from megaselect.verification.differences import differences, relative_error
from megaselect.verification.module_run import LossFunction, ModuleRun, run_module
from megaselect.verification.module_state import Snapshot, preserved
from megaselect.verification.report import Check, Outcome, Report, Subject, check

BACKWARD, RANDOM, BITS, GRADIENTS, BUFFERS, SAVES = (
    "backward",
    "random numbers",
    "same bits",
    "gradients",
    "buffers",
    "recomputes",
)
ROUNDING_STEPS = 32  # of fp32 or fp64: a difference so small is another order of sums, no wrong mask


def verify(model: nn.Module, batch: Any, loss_fn: LossFunction | None = None) -> Report:
    """One step as it is and one with checkpointing switched off, from the same random state, compared.

    batch: a tensor (model(batch)), a tuple (model(*batch)) or a mapping (model(**batch)). The loss is what the model
    returns, its `.loss` or "loss", or loss_fn of it: a scalar. Finds random numbers that differ in a second run, lost
    and wrong gradients, running statistics that were updated twice, and checkpoints that recompute or save nothing.
    Gradients, buffers, random states and modes are afterwards as they were; hooks on gradients run, so call it before
    such are set. Raises VerificationError where there is no scalar loss.
    """
    with preserved(model, batch) as start:
        as_is = run_module(model, batch, loss_fn, start)
        plain = run_module(model, batch, loss_fn, start, checkpointing=False)
        checks = list(_checks(model, batch, loss_fn, start, as_is, plain))
    figures = {
        "stored_bytes": as_is.stored_bytes,
        "stored_bytes_without_checkpointing": plain.stored_bytes,
        "rerun_flops": as_is.rerun.flops,
        "rerun": dict(as_is.rerun.calls),
    }
    return Report((Subject(type(model).__name__, checks=tuple(checks), figures=figures),), tuple(_notes(plain)))


def _checks(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot, as_is: ModuleRun, plain: ModuleRun
) -> Iterator[Check]:
    yield check(BACKWARD, [f"it raised {as_is.error}"] if as_is.error else [])
    yield check(RANDOM, as_is.watch.faults, _drawn(as_is.watch.drawn, as_is.watch.redrawn))
    if not as_is.error:
        yield from _same_step(model, batch, loss_fn, start, as_is, plain)
        yield _without_gradient(model, as_is, plain)
        yield _recomputes(model, as_is, plain)


def _drawn(count: int, again: int) -> str:
    """Of `count` random results, the fate of those that were drawn `again`, and of the others."""
    if not again:
        return "none drawn again"
    once = f"; {count - again} drawn once, outside of what runs again" if count > again else ""
    return f"{again} drawn again, each the same{once}"


def _same_step(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot, as_is: ModuleRun, plain: ModuleRun
) -> Iterator[Check]:
    if plain.error:
        yield Check(BITS, Outcome.NOT_CHECKED, f"without checkpointing backward raised {plain.error}")
        return
    if plain.regions or not plain.rerun.calls:
        yield _bits(model, batch, loss_fn, start, as_is, plain)
        yield check(BUFFERS, _buffer_faults(as_is, plain))
    else:
        yield Check(
            BITS, Outcome.NOT_CHECKED, "what runs again is no checkpoint of torch's, which could be switched off"
        )
    if plain.rerun.calls:
        yield directional.check_directions(model, batch, loss_fn, start)


def _bits(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot, as_is: ModuleRun, plain: ModuleRun
) -> Check:
    """Loss and gradients against those without checkpointing, where these repeat themselves."""
    faults = list(differences(_present(as_is.values), _present(as_is.values, plain.values)))
    if not faults:
        return Check(BITS, Outcome.PASSED, "the loss and each gradient that is there, as without checkpointing")
    repeated = run_module(model, batch, loss_fn, start, checkpointing=False)
    unstable = list(differences(repeated.values, plain.values))
    if unstable:
        return Check(BITS, Outcome.NOT_CHECKED, f"without checkpointing the step does not repeat itself: {unstable[0]}")
    if _differs_by_rounding(as_is.values, plain.values):
        return Check(BITS, Outcome.WARNING, f"{faults[0]}: no more than another order of sums makes")
    return check(BITS, faults)


def _present(
    values: Mapping[str, Tensor | None], others: Mapping[str, Tensor | None] | None = None
) -> dict[str, Tensor | None]:
    """Those of `others` (or `values`) that are there in `values`: what is lost is another check's."""
    return {name: (others or values)[name] for name, value in values.items() if value is not None}


def _differs_by_rounding(actual: Mapping[str, Tensor | None], expected: Mapping[str, Tensor | None]) -> bool:
    for name, got in actual.items():
        want = expected[name]
        if got is None or want is None:
            continue
        if got.dtype not in (torch.float32, torch.float64):
            return False
        if not relative_error(got, want) <= ROUNDING_STEPS * torch.finfo(got.dtype).eps:
            return False
    return True


def _buffer_faults(as_is: ModuleRun, plain: ModuleRun) -> Iterator[str]:
    for fault in differences(as_is.buffers, plain.buffers):
        yield f"{fault} from without checkpointing: the second run updates it again"


def _without_gradient(model: nn.Module, as_is: ModuleRun, plain: ModuleRun) -> Check:
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


def _recomputes(model: nn.Module, as_is: ModuleRun, plain: ModuleRun) -> Check:
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
    flagged = [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    if flagged:
        yield f"gradient_checkpointing is set on {len(flagged)} modules"
    wrapper = getattr(sys.modules.get(CHECKPOINT_WRAPPER_MODULE), "CheckpointWrapper", ())
    wrapped = sum(isinstance(module, wrapper) for module in model.modules())
    if wrapped:
        yield f"{wrapped} modules are in a checkpoint_wrapper"


def _notes(plain: ModuleRun) -> Iterator[str]:
    if plain.regions and plain.rerun.calls:
        yield (
            f"{plain.regions} regions of torch's checkpoint were switched off for comparison; what somebody's own "
            "autograd function runs again was held against differences in fp64"
        )
