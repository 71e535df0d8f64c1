"""Any nn.Module with checkpointing of any make: is it the same training as without?"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from megaselect.batches import LossFunction
from megaselect.errors import as_line
from megaselect.recomputation.any_model import plans_of
from megaselect.trees import map_tensors
from megaselect.verification import directional, module_checks
from megaselect.verification.differences import Values, differ_by_rounding, differences, distance, unlike
from megaselect.verification.module_checks import BITS, present
from megaselect.verification.module_run import ModuleRun, run_module, runs_compiled
from megaselect.verification.module_state import Snapshot, preserved
from megaselect.verification.report import Check, Outcome, Report, Subject, check

REPETITIONS = 3  # of a step without checkpointing, where it may not repeat itself
MAX_NOISE = 1e-3  # of the largest gradient: a kernel's order of sums in 16 bit; a random mask makes far more


def verify(model: nn.Module, batch: Any, loss_fn: LossFunction | None = None) -> Report:
    """One step as it is and one with checkpointing switched off, from the same state, compared.

    batch: a tensor (model(batch)), a tuple (model(*batch)) or a mapping (model(**batch)). The loss is what the model
    returns, its `.loss` or "loss", or loss_fn of it: a scalar. Finds random numbers and other results that differ in a
    second run, lost and wrong gradients, state that was updated twice, tensors changed in place that checkpointing
    hides, and checkpoints that recompute or save nothing. Parameters, gradients, buffers, attributes of modules,
    random states and the batch are afterwards as they were; hooks on gradients run, so call it before such are set.
    Needs memory for a second copy of the parameters. Raises VerificationError where there is no scalar loss,
    UnsupportedTorchError where this torch cannot be observed.
    """
    with torch.enable_grad(), preserved(model, batch, loss_fn) as start:
        step = _Step(model, batch, loss_fn, start)
        checks = tuple(step.checks())
    as_is, plain = step.as_is, step.plain
    figures = {
        "saved_bytes": as_is.saved_bytes,
        "saved_bytes_without_checkpointing": plain.saved_bytes,
        "rerun_flops": as_is.rerun.flops,
        "rerun": dict(as_is.rerun.calls),
    }
    notes = tuple(module_checks.notes(model, plain, step.compiled))
    return Report((Subject(type(model).__name__, checks=checks, figures=figures),), notes)


class _Step:
    """The runs of one step, and what follows from them."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot) -> None:
        self.model, self.batch, self.loss_fn, self.start = model, batch, loss_fn, start
        self.compiled = runs_compiled(model, batch, loss_fn, start)
        self.as_is = self._run()
        self.plain = self._run(checkpointing=False)

    def _run(self, checkpointing: bool = True) -> ModuleRun:
        return run_module(self.model, self.batch, self.loss_fn, self.start, checkpointing, self.compiled)

    def checks(self) -> Iterator[Check]:
        """In the order of a report."""
        as_is, plain = self.as_is, self.plain
        yield check(module_checks.BACKWARD, [f"it raised {as_line(as_is.error)}"] if as_is.error else [])
        yield module_checks.random_numbers(as_is.watch)
        if as_is.error:
            return
        judged = list(self._same_gradients())
        yield from judged
        yield from module_checks.second_run(as_is, judged)
        if self._can_be_switched_off() and not plain.error:
            yield check(module_checks.STATE, module_checks.state_faults(as_is, plain))
        yield module_checks.without_gradient(self.start, as_is, plain)
        yield module_checks.recomputes(self.model, as_is, plain)
        yield from map(module_checks.recipes, plans_of(self.model))

    def _can_be_switched_off(self) -> bool:
        """Checkpoints of torch's can, and so nothing else may run again without them."""
        return bool(self.plain.regions) or not self.plain.rerun.calls

    def _same_gradients(self) -> Iterator[Check]:
        """Against the step without checkpointing, and against differences where something else runs again."""
        if self.plain.error:
            yield module_checks.hidden_error(self.plain.error)
            return
        loss = float(self.as_is.loss)
        if not math.isfinite(loss):
            yield Check(BITS, Outcome.NOT_CHECKED, f"the loss is {loss}: nothing can be told from what follows of it")
            return
        if self._can_be_switched_off() and not self.compiled:
            yield self._bits()
        if self.plain.rerun.calls or self.compiled or self.as_is.watch.own_draws:
            yield self._differences()

    def _differences(self) -> Check:
        """Of a model that stops gradients, as a straight-through estimator does, backward is no derivative."""
        self.start.put_back()
        found = directional.check_directions(self.model, self.batch, self.loss_fn, self.start, self.compiled)
        watch = self.as_is.watch
        if found.outcome is Outcome.FAILED and watch.own_draws:
            return replace(found, detail=f"{found.detail}; {watch.own_draws[0]}")
        if found.outcome is Outcome.FAILED and watch.stops_gradients:
            detail = f"{found.detail}; the model detaches tensors, and so its gradients need be no derivatives"
            return replace(found, outcome=Outcome.NOT_CHECKED, detail=detail)
        return found

    def _bits(self) -> Check:
        """Loss and gradients against those without checkpointing, where these repeat themselves."""
        actual, expected = self.as_is.values, self.plain.values
        faults = list(differences(present(actual), present(actual, expected)))
        if not faults:
            return Check(BITS, Outcome.PASSED, "the loss and each gradient that is there, as without checkpointing")
        if differ_by_rounding(actual, expected):
            return self._of_rounding(faults[0])
        if self.as_is.watch.ran_in_16_bit and self._differs_by_rounding_alone():
            return Check(BITS, Outcome.WARNING, f"{faults[0]}: rounding of 16 bit, with more bits there is none")
        repeated = [self._run(checkpointing=False).values for _ in range(REPETITIONS)]
        unstable = [fault for again in repeated for fault in differences(again, expected)]
        if all(differ_by_rounding(again, expected) for again in repeated):
            return check(BITS, faults)
        noise = max(distance(again, expected) for again in repeated)
        if noise <= MAX_NOISE and distance(actual, expected) <= 4 * noise:
            return Check(BITS, Outcome.WARNING, f"{faults[0]}: no more than the step differs from its own repetition")
        if not unstable:
            return check(BITS, faults)
        detail = f"without checkpointing the step does not repeat itself: {unstable[0]}"
        return Check(BITS, Outcome.NOT_CHECKED, detail)

    def _of_rounding(self, fault: str) -> Check:
        """Of a difference that rounding makes of the largest gradient: behind a small scale it may be anything.

        In fp64 rounding shrinks and a wrong mask does not. What is no more there than fp32 rounds, where parts of the
        model cast to that, may be a gradient that is zero but for rounding.
        """
        rounding = Check(BITS, Outcome.WARNING, f"{fault}: no more than another order of sums makes")
        values = self._values_in(torch.float64)
        if values is None or differ_by_rounding(*values):
            return rounding
        wrong = unlike(*values)
        if wrong is None:
            return rounding
        if wrong.size > torch.finfo(torch.float32).eps:
            return check(BITS, [f"{wrong.sentence}, in float64"])
        detail = f"{wrong.sentence}: too small a gradient to tell rounding from a fault"
        return Check(BITS, Outcome.NOT_CHECKED, detail)

    def _differs_by_rounding_alone(self) -> bool:
        """Judged in fp64, which autocast leaves alone, or in fp32 where an operator has no fp64.

        Parts that cast to fp32 round as that does.
        """
        values = self._values_in(torch.float64) or self._values_in(torch.float32)
        return values is not None and differ_by_rounding(*values, torch.float32)

    def _values_in(self, dtype: torch.dtype) -> tuple[Values, Values] | None:
        """As it is and without checkpointing, in `dtype`; None where the model does not run in it."""
        self.start.put_back()  # buffers in whose place a run has put others, before the dtype is changed
        batch = map_tensors(functools.partial(directional.tensor_in_dtype, dtype), self.batch)
        with contextlib.suppress(Exception), directional.in_dtype(self.model, dtype):
            as_is = run_module(self.model, batch, self.loss_fn, self.start, True, self.compiled)
            plain = run_module(self.model, batch, self.loss_fn, self.start, False, self.compiled)
            return as_is.values, plain.values
        return None
