"""megaselect.recompute: by a setting's name, or by the memory that there is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from megaselect.batches import LossFunction, called_with, loss_of
from megaselect.compatibility import fake_copy
from megaselect.errors import RecomputeError
from megaselect.ledger import record
from megaselect.ledger.live_bytes import LiveBytes
from megaselect.planning.cut import Cut, fastest, saved_bytes
from megaselect.planning.operator_times import operator_seconds
from megaselect.recomputation.any_model import AnyModelPlan, has_plan
from megaselect.recomputation.tape.graph import Graph, GraphRecording
from megaselect.recomputation.tape.modes import recorded_by
from megaselect.recomputation.tape.module_hooks import modules_told
from megaselect.recomputation.tape.operators import operator
from megaselect.recomputation.tape.settings import Setting
from megaselect.recomputation.tape.values import Place
from megaselect.recomputation.without_values import without_values
from megaselect.units import parse_size, size

OPTIMIZER_COPIES = 2  # moments of AdamW, of each parameter that is trained
GIVE_A_SETTING = "give a setting; plan.bytes has what is saved after one forward pass"
TRIES = 12  # of a budget for what is saved, until a step's peak fits as well


def recompute(
    model: nn.Module,
    setting: Setting | None = None,
    *,
    memory: str | int | None = None,
    saved: str | int | None = None,
    batch: Any = None,
    loss_fn: LossFunction | None = None,
) -> AnyModelPlan:
    """Have `model` save less for backward and make the rest again there: the same losses and gradients, bit for bit.

    setting: "none", "selective" (no matrix product runs again; the default), "attention" (attention's two may), "full"
    (only the layers' inputs are saved, and the last one's output); or settings by paths of modules:
    {"model.layers.*": "full", "lm_head": "none"}, where * stands for anything and the first that fits counts. The model
    stays what it is: its class, its forward, its state.

    Instead of a setting, a budget: the fastest plan, tensor by tensor, that stays within it. saved: bytes, or "2GiB",
    of what is saved for backward; memory: of a whole step: parameters, buffers, AdamW's moments, and the most that
    gradients, what is saved and what operators make take together. With a budget, batch: what the model is called with
    (a tensor, a tuple, or a mapping for keywords); loss_fn: of its output, where that is no loss and has none. A copy
    of the model runs without values, and each kind of operator once, to be timed.

    Raises RecomputeError for a setting or a path that is not there, for a model that has a plan already, and where no
    plan fits the budget; ConfigError for a size that is none; VerificationError where `memory` needs a loss.
    """
    if has_plan(model):
        raise RecomputeError("recompute: the model, or a part of it, has a plan already: plan.undo() takes it away")
    if memory is None and saved is None:
        if batch is not None or loss_fn is not None:
            raise RecomputeError("recompute: batch and loss_fn are for a budget: give memory or saved with them")
        return AnyModelPlan(model, "selective" if setting is None else setting)
    if setting is not None or batch is None or (memory is not None and saved is not None):
        raise RecomputeError("recompute: give a setting, or one of memory and saved with a batch")
    planner = _Planner(model, batch, loss_fn)
    if saved is not None:
        return planner.within_saved(_bytes(saved, "saved"))
    return planner.within_memory(_bytes(memory, "memory"))


def _bytes(given: Any, name: str) -> int:
    if isinstance(given, str):
        return parse_size(given, f"recompute: {name}")
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise RecomputeError(f"recompute: {name}={given!r} must be a number of bytes, or a size such as 24GiB")
    return given


class _Step(NamedTuple):
    """Bytes: saved for backward, and of everything that a step makes, at its highest moment."""

    saved: int
    peak: int


class _Planner:
    """Plans for one model and one batch."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: LossFunction | None) -> None:
        self.model, self.batch, self.loss_fn = model, batch, loss_fn
        self.graph = self._graph()
        self.seconds = operator_seconds(self.graph)

    def within_saved(self, budget: int) -> AnyModelPlan:
        """The fastest plan that saves at most so many bytes."""
        limit = budget
        for _ in range(TRIES):
            cut = self._fastest(limit)
            if cut is None:
                break
            names = self._names(cut)
            saved = self._step(names, with_backward=False).saved
            if saved <= budget:
                return AnyModelPlan(self.model, f"{size(budget)} saved", rerun=names)
            limit = min(limit, cut.saved) - (saved - budget)
        raise self._too_little(budget, "saved", self._least(with_backward=False).saved)

    def within_memory(self, budget: int) -> AnyModelPlan:
        """The fastest plan whose step takes at most so many bytes."""
        there = self._there_anyway()
        none = saved_bytes(self.graph, frozenset())
        limit = budget if none is None else min(budget, none)
        for _ in range(TRIES):
            cut = self._fastest(limit)
            if cut is None:
                break
            names = self._names(cut)
            needed = there + self._step(names, with_backward=True).peak
            if needed <= budget:
                said = f"{size(budget)} of memory, of which it takes {size(needed)}"
                return AnyModelPlan(self.model, said, rerun=names)
            limit = min(limit, cut.saved) - max(needed - budget, 1)
        raise self._too_little(budget, "memory", there + self._least(with_backward=True).peak)

    def _fastest(self, limit: int) -> Cut | None:
        return fastest(self.graph, self.seconds, limit) if limit > 0 else None

    def _least(self, with_backward: bool) -> _Step:
        """Of the plan that saves the fewest bytes."""
        every = {place: operator(one.node.func).name for place, one in self.graph.operators.items()}
        return self._step(every, with_backward)

    def _graph(self) -> Graph:
        with self._copied_without_values() as (model, batch):
            recording = GraphRecording(model)
            with recorded_by(recording), modules_told(model, recording):
                called_with(model, batch)
            return recording.graph()

    def _names(self, cut: Cut) -> dict[Place, str]:
        return {place: operator(self.graph.operators[place].node.func).name for place in cut.rerun}

    def _step(self, names: dict[Place, str], with_backward: bool) -> _Step:
        """A step of a copy without values, by this plan."""
        with self._copied_without_values() as (model, batch):
            plan = AnyModelPlan(model, "", rerun=names)
            model.zero_grad(set_to_none=True)
            live = LiveBytes()
            with live:
                with record(model) as ledger:
                    output = called_with(model, batch)
                if with_backward:
                    loss_of(output, self.loss_fn).backward()
            followed = plan.bytes or 0  # a pass that follows may find less of what it could make again
            return _Step(max(ledger.total, followed), live.peak + max(followed - ledger.total, 0))

    @contextlib.contextmanager
    def _copied_without_values(self) -> Iterator[tuple[nn.Module, Any]]:
        """The model and its batch."""
        with (
            without_values(self.model, GIVE_A_SETTING),
            fake_copy((self.model, self.batch)) as copied,
            torch.enable_grad(),
        ):
            yield copied

    def _there_anyway(self) -> int:
        trained = sum(part.nbytes for part in self.model.parameters() if part.requires_grad)
        parts = [*self.model.parameters(), *self.model.buffers()]
        return sum(part.nbytes for part in parts) + OPTIMIZER_COPIES * trained

    def _too_little(self, budget: int, name: str, least: int) -> RecomputeError:
        return RecomputeError(
            f"recompute: {name}={size(budget)} is too little for {type(self.model).__name__} with this batch: the "
            f"least is about {size(least)}; give more, or a smaller batch"
        )
