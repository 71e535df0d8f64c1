"""What `megaselect.recompute` costs and saves on a CPU, on models as they are, beside what others have.

A step is a forward and a backward pass, without an optimizer; each contender has a copy of the model, with the same
weights. A round is one turn of each.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import any_model
from benchmarks.allocations import allocated
from benchmarks.any_model import COMPILED, EAGER, HF_FULL, NONE, OURS, SAC, SHAPES, Forward, Sizes, batch_of
from benchmarks.operator_cost import cost_case
from benchmarks.runner import Bench, Case, Row
from benchmarks.threads import one_thread
from benchmarks.timing import Timed, by_round, summary, take_turns
from megaselect import ledger
from megaselect.comparison.step_times import quantiles

BASES = (NONE, SAC, HF_FULL)
BITS, ROUNDING, WRONG = "same bits", "rounding", "WRONG"
MOST_ROUNDING = 1e-4  # of a gradient; another mask makes it differ by its own size
SEEDS = (1, 2)  # of the steps that are compared: the first is recorded, the second follows
INSPECTION_SECONDS, COMPILE_SECONDS, COST_SECONDS = 90.0, 240.0, 20.0


def cases(arguments: argparse.Namespace, bench: Bench, _: torch.dtype) -> list[Case]:
    """Steps of each shape, then what an operator costs, then compiled steps, which compile for minutes."""
    steps, costs, compiled = [], [], []
    for name in arguments.shapes.split(","):
        sizes, counts = any_model.SIZES, SHAPES[name].counts
        key, spec = f"{name} h={sizes.hidden} s={sizes.sequence} b={sizes.batch}", repr(sizes)
        run = functools.partial(_run, name, sizes)
        steps.append(Case(key, functools.partial(run, EAGER), INSPECTION_SECONDS + bench.seconds, spec))
        costs.append(cost_case(name, COST_SECONDS + bench.seconds))
        beside = {NONE: EAGER[NONE], counts: EAGER[counts], **COMPILED}
        run_compiled = functools.partial(run, beside)
        compiled.append(Case(f"{key} compiled", run_compiled, COMPILE_SECONDS + bench.seconds, spec))
    return steps + costs + compiled


class Contender:
    """A copy of a model with a way on it. row: its results so far."""

    def __init__(self, name: str, row: Row) -> None:
        self.name, self.row = name, {**row, "contender": name, "status": "ok", "reason": ""}
        self.model: nn.Module | None = None
        self.forward: Forward | None = None
        self.batch: dict[str, Tensor] = {}

    def prepare(self, model: nn.Module, way: Callable[[nn.Module], Forward], sizes: Sizes) -> None:
        self.model, self.batch = copy.deepcopy(model), batch_of(sizes)
        self.forward = way(self.model)

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


def _run(name: str, sizes: Sizes, ways: dict[str, Callable[[nn.Module], Forward]], bench: Bench) -> list[Row]:
    with one_thread():
        return _measured(name, sizes, ways, bench)


def _measured(name: str, sizes: Sizes, ways: dict[str, Callable[[nn.Module], Forward]], bench: Bench) -> list[Row]:
    shape = SHAPES[name]
    model, larger = shape.make(sizes), shape.make(dataclasses.replace(sizes, layers=sizes.layers + 1))
    is_compiled = any(way in COMPILED for way in ways)
    kind = {"shape": name, "compiled": is_compiled, "activation": sizes.activation, "layers": sizes.layers}
    contenders = [Contender(way, kind) for way in ways]
    expected: list[list[Tensor]] = []
    for contender in contenders:

        def inspect(contender: Contender = contender) -> None:
            way = ways[contender.name]
            contender.prepare(model, way, sizes)
            _compare(contender, expected)
            if contender.name not in COMPILED:
                _count_saved(contender, larger, way, sizes)
            contender.row |= allocated(contender.loss)._asdict()

        contender.row["status"], contender.row["reason"] = _attempt(bench, contender.name, inspect)
    alive = [contender for contender in contenders if contender.row["status"] == "ok"]
    timed = take_turns(
        {item.name: item.step for item in alive}, bench.stopwatch, bench.rounds, bench.seconds, bench.attempt
    )
    _add_times(alive, timed, bench.rounds)
    return [contender.row for contender in contenders]


def _attempt(bench: Bench, name: str, work: Callable[[], Any]) -> tuple[str, str]:
    """A package that is missing is no error."""
    status, reason = bench.attempt(name, work)
    return ("skipped" if reason.startswith(("ImportError", "ModuleNotFoundError")) else status), reason


def _compare(contender: Contender, expected: list[list[Tensor]]) -> None:
    """Loss and gradients of two steps with those of the first contender."""
    found = [contender.results(seed) for seed in SEEDS]
    if not expected:
        expected += [[tensor.clone() for tensor in results] for results in found]
    pairs = [
        pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=True)
    ]
    is_same = all(torch.equal(mine, other) for mine, other in pairs)
    error = max(((mine - other).norm() / other.norm()).item() for mine, other in pairs)
    verdict = BITS if is_same else ROUNDING if error < MOST_ROUNDING else WRONG
    contender.row |= {"gradients": verdict, "gradient_error": error}
    if contender.name in OURS:
        contender.row["same_bits"] = is_same


def _count_saved(
    contender: Contender, larger: nn.Module, way: Callable[[nn.Module], Forward], sizes: Sizes
) -> None:
    """What is saved for backward, and what a layer adds to it."""
    other = Contender(contender.name, {})
    other.prepare(larger, way, sizes)
    other.loss()
    saved = []
    for each in (contender, other):
        with ledger.record(each.model) as rows:
            each.loss()
        saved.append(rows.total)
    contender.row |= {"saved_measured": saved[0], "saved_a_layer": saved[1] - saved[0]}


def _add_times(contenders: Sequence[Contender], timed: dict[str, Timed], rounds: int) -> None:
    """Medians of each round, and their ratios to the bases'."""
    times = {name: by_round(each.milliseconds, rounds) for name, each in timed.items() if each.status == "ok"}
    for contender in contenders:
        row = contender.row
        row["status"], row["reason"] = timed[contender.name].status, timed[contender.name].reason
        if contender.name in times:
            mine = times[contender.name]
            row |= {"step_ms": summary(mine), "all_step_ms": mine}
            row["ratios"] = {
                base: quantiles([each / other for each, other in zip(mine, times[base], strict=True)])._asdict()
                for base in BASES
                if base in times
            }
