"""Steps of a model under several ways to save less: bits, bytes, peak and times. One case compares one model.

A step is a forward and a backward pass, without an optimizer; each contender has a copy of the model, with the same
weights. A round is one turn of each.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.allocations import allocated
from benchmarks.any_model_shapes import SHAPES, Batch, Sizes, batch_of
from benchmarks.any_model_ways import EAGER, HF_FULL, NONE, REMAT, SAC, Forward, Way, is_ours
from benchmarks.runner import Bench, Row
from benchmarks.threads import one_thread
from benchmarks.timing import Timed, by_round, failure, summary, take_turns
from megaselect import ledger
from megaselect.comparison.step_times import quantiles

BASES = (NONE, SAC, HF_FULL)  # of ratios of step times
SAME, ROUNDING, WRONG = "same bits", "rounding", "WRONG"
MOST_ROUNDING = 1e-4  # of a gradient; another mask makes it differ by its own size
SEEDS = (1, 2)  # of the steps that are compared: the first is recorded, the second follows
REFUSED = ("RecomputeError", "InfeasibleTargetError")  # a budget that nothing fits
ABSENT = ("ImportError", "ModuleNotFoundError", "CompilerUnavailableError")  # what is not there is no error
COMPILED = "compiled"  # names of contenders that are begin so
Counted = Callable[[Row], None]


class Contender:
    """A copy of a model with a way on it. row: its results so far."""

    def __init__(self, name: str, way: Way, row: Row) -> None:
        self.name, self.way = name, way
        self.row = {**row, "contender": name, "status": "ok", "reason": ""}
        self.model: nn.Module | None = None
        self.forward: Forward | None = None
        self.batch: Batch = {}

    def prepare(self, model: nn.Module, batch: Batch) -> None:
        """Put the way on a copy of `model`."""
        self.model, self.batch = copy.deepcopy(model), batch
        self.forward = self.way(self.model, batch)

    def loss(self) -> Tensor:
        """Of a forward pass."""
        return self.forward(**self.batch).loss

    def step(self) -> None:
        """Forward and backward."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()

    def results(self, seed: int) -> list[Tensor]:
        """Loss and gradients of a step that draws from `seed`."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(seed)
        loss = self.loss()
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in self.model.parameters())]

    def saved(self) -> int:
        """Bytes that a forward pass saves for backward, by a ledger that puts no hooks on the model: it may compile."""
        with ledger.record(nn.ParameterList(self.model.parameters())) as rows:
            self.loss()
        return rows.total


def compare_steps(
    shape: str, sizes: Sizes, ways: Mapping[str, Way], bench: Bench, counted: Counted = lambda _: None
) -> list[Row]:
    """A row for each way, the first of which the others are compared with. counted: told of each that has its bytes."""
    with one_thread():
        try:
            return _Comparison(shape, sizes, bench, counted).rows(ways)
        except ImportError as error:  # of transformers
            reason = failure(error)[1]
            return [{"contender": name, "status": "skipped", "reason": reason} for name in ways]


class _Comparison:
    """Of ways on one model. larger: the same with one layer more."""

    def __init__(self, shape: str, sizes: Sizes, bench: Bench, counted: Counted) -> None:
        make = SHAPES[shape].make
        self.bench, self.counted = bench, counted
        self.model = make(sizes).to(bench.device)
        self.larger = make(dataclasses.replace(sizes, layers=sizes.layers + 1)).to(bench.device)
        self.batch = batch_of(sizes, bench.device)
        self.kind = {"shape": shape, "sizes": dataclasses.asdict(sizes), "activation_bytes": sizes.activation_bytes}
        self.expected: list[list[Tensor]] = []

    def rows(self, ways: Mapping[str, Way]) -> list[Row]:
        contenders = [Contender(name, way, self.kind) for name, way in ways.items()]
        for contender in contenders:
            contender.row["status"], contender.row["reason"] = self._attempt(contender)
        alive = [contender for contender in contenders if contender.row["status"] == "ok"]
        steps = {contender.name: contender.step for contender in alive}
        bench = self.bench
        _add_times(alive, take_turns(steps, bench.stopwatch, bench.rounds, bench.seconds, bench.attempt), bench.rounds)
        return [contender.row for contender in contenders]

    def _attempt(self, contender: Contender) -> tuple[str, str]:
        status, reason = self.bench.attempt(contender.name, lambda: self._inspect(contender))
        if reason.startswith(ABSENT):
            return "skipped", reason
        return ("refused" if reason.startswith(REFUSED) else status), reason

    def _inspect(self, contender: Contender) -> None:
        contender.prepare(self.model, self.batch)
        contender.row |= self._compared(contender)
        if contender.name != REMAT:  # its own hooks keep less than a ledger sees them being handed
            contender.row["saved_measured"] = contender.saved()
            if contender.name in EAGER:
                contender.row["saved_a_layer"] = self._of_larger(contender) - contender.row["saved_measured"]
        contender.row |= allocated(contender.loss, self.bench.device)._asdict()
        self.counted(contender.row)

    def _compared(self, contender: Contender) -> Row:
        """Loss and gradients of two steps with those of the first contender."""
        found = [contender.results(seed) for seed in SEEDS]
        if not self.expected:
            self.expected = [[tensor.clone() for tensor in results] for results in found]
        pairs = [
            pair for mine, right in zip(found, self.expected, strict=True) for pair in zip(mine, right, strict=True)
        ]
        is_same = all(torch.equal(mine, right) for mine, right in pairs)
        error = 0.0 if is_same else max(((mine - right).norm() / right.norm()).item() for mine, right in pairs)
        row: Row = {"gradients": SAME if is_same else ROUNDING if error < MOST_ROUNDING else WRONG}
        if is_ours(contender.name):
            row["same_bits"] = is_same
        return row | {"gradient_error": error}

    def _of_larger(self, contender: Contender) -> int:
        """What the way saves on the larger model."""
        other = Contender(contender.name, contender.way, {})
        other.prepare(self.larger, self.batch)
        other.loss()  # of ours the first pass is recorded
        return other.saved()


def _add_times(contenders: Sequence[Contender], timed: Mapping[str, Timed], rounds: int) -> None:
    """Medians of each round, and their ratios to the bases'."""
    times = {name: by_round(each.milliseconds, rounds) for name, each in timed.items() if each.status == "ok"}
    for contender in contenders:
        row = contender.row
        row["status"], row["reason"] = timed[contender.name].status, timed[contender.name].reason
        if contender.name in times:
            mine = times[contender.name]
            row |= {"step_ms": summary(mine), "all_step_ms": mine}
            row["ratios"] = {base: ratio(mine, times[base]) for base in BASES if base in times}


def ratio(mine: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Quantiles of the ratios within a round."""
    return quantiles([own / other for own, other in zip(mine, others, strict=True)])._asdict()
