"""What a plan costs an operator of forward once it follows, on a model whose operators cost next to nothing.

Processor time, of which a few microseconds an operator can be told on a machine that others use too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

from torch import nn

import megaselect
from benchmarks.any_model_shapes import SHAPES, SMALL_SIZES, batch_of
from benchmarks.any_model_ways import NONE, OURS
from benchmarks.runner import Bench, Case, Row
from benchmarks.threads import one_thread
from benchmarks.timing import ProcessorStopwatch, Timed, by_round, failure, take_turns
from megaselect.comparison.step_times import quantiles
from megaselect.compatibility import TorchDispatchMode

Pass = Callable[[nn.Module], Any]


class OperatorCount(TorchDispatchMode):
    """Counts what comes to the dispatcher below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def cost_case(shape: str, seconds: float) -> Case:
    """One row for each of our settings: microseconds an operator of forward, of the forward pass and of the step."""
    return Case(f"{shape} overhead", functools.partial(_run, shape), seconds, repr(SMALL_SIZES))


def _run(shape: str, bench: Bench) -> list[Row]:
    try:
        model = SHAPES[shape].make(SMALL_SIZES).to(bench.device)
    except ImportError as error:  # of transformers
        return [{"contender": name, "status": "skipped", "reason": failure(error)[1]} for name in OURS]
    batch = batch_of(SMALL_SIZES, bench.device)
    models = {NONE: model, **{setting: copy.deepcopy(model) for setting in OURS}}
    for setting in OURS:
        megaselect.recompute(models[setting], setting)

    def forward(model: nn.Module) -> Any:
        return model(**batch).loss

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        forward(model).backward()

    passes: dict[str, Pass] = {"forward": forward, "step": step}
    with one_thread():
        with OperatorCount() as operators:
            forward(model)
        runs = {
            f"{name} {way}": functools.partial(run, each)
            for name, each in models.items()
            for way, run in passes.items()
        }
        timed = take_turns(runs, ProcessorStopwatch(), bench.rounds, bench.seconds, bench.attempt)
    return [_row(shape, setting, timed, operators.count, bench.rounds) for setting in OURS]


def _row(shape: str, setting: str, timed: dict[str, Timed], operators: int, rounds: int) -> Row:
    """Differences within a round: of a pass that follows, and of one of the untouched model."""
    row: Row = {"shape": shape, "contender": setting, "status": "ok", "reason": "", "operators": operators}
    for way in ("forward", "step"):
        mine, base = timed[f"{setting} {way}"], timed[f"{NONE} {way}"]
        failed = next((each for each in (mine, base) if each.status != "ok"), None)
        if failed is not None:
            return {**row, "status": failed.status, "reason": failed.reason}
        pairs = zip(by_round(mine.milliseconds, rounds), by_round(base.milliseconds, rounds), strict=True)
        row[f"{way}_us"] = quantiles([1e3 * (own - other) / operators for own, other in pairs])._asdict()
    return row
