"""What a plan costs an operator, on a model whose operators cost next to nothing."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

import megaselect
from benchmarks.any_model import NONE, OURS, SHAPES, SMALL_SIZES, batch_of
from benchmarks.runner import Bench, Case, Row
from benchmarks.threads import one_thread
from benchmarks.timing import by_round, take_turns
from megaselect.compatibility import TorchDispatchMode, replaced
from megaselect.comparison.step_times import quantiles
from megaselect.recomputation.tape.replay import Recipe

PASSES = ("forward", "step")


class OperatorCount(TorchDispatchMode):
    """Counts what comes to the dispatcher below autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def cost_case(shape: str, seconds: float) -> Case:
    """One row for each of our settings: microseconds an operator of forward, and a recipe that backward makes."""
    return Case(f"{shape} overhead", functools.partial(_run, shape), seconds, repr(SMALL_SIZES))


def _run(shape: str, bench: Bench) -> list[Row]:
    model, batch = SHAPES[shape].make(SMALL_SIZES), batch_of(SMALL_SIZES)
    models = {NONE: model, **{setting: copy.deepcopy(model) for setting in OURS}}
    for setting in OURS:
        megaselect.recompute(models[setting], setting)

    def forward(model: nn.Module) -> Any:
        return model(**batch).loss

    def step(model: nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        forward(model).backward()

    with one_thread():
        with OperatorCount() as operators:
            forward(model)
        recipes = {setting: _recipes(functools.partial(step, models[setting])) for setting in OURS}
        runs = {
            f"{name} {way.__name__}": functools.partial(way, each)
            for name, each in models.items()
            for way in (forward, step)
        }
        timed = take_turns(runs, bench.stopwatch, bench.rounds, bench.seconds, bench.attempt)
    times = {
        name: [by_round(timed[f"{name} {way}"].milliseconds, bench.rounds) for way in PASSES]
        for name in models
        if all(timed[f"{name} {way}"].status == "ok" for way in PASSES)
    }
    return [_row(shape, setting, times, operators.count, recipes[setting]) for setting in OURS]


def _recipes(step: Any) -> int:
    """That backward asks for in a step which follows."""
    step()
    with _counting_recipes() as made:
        step()
    return len(made)


@contextlib.contextmanager
def _counting_recipes() -> Iterator[list[Recipe]]:
    made: list[Recipe] = []

    def counted(make: Any) -> Any:
        def make_again(recipe: Recipe) -> Any:
            made.append(recipe)
            return make(recipe)

        return make_again

    with replaced(Recipe, "make", counted):
        yield made


def _row(shape: str, setting: str, times: dict[str, list[list[float]]], operators: int, recipes: int) -> Row:
    row: Row = {"shape": shape, "contender": setting, "status": "ok", "reason": ""}
    row |= {"operators": operators, "recipes": recipes}
    if NONE not in times or setting not in times:
        return {**row, "status": "error", "reason": "not timed"}
    (own_forward, own_step), (base_forward, base_step) = times[setting], times[NONE]
    forward = [1e3 * (mine - base) for mine, base in zip(own_forward, base_forward, strict=True)]
    whole = [1e3 * (mine - base) for mine, base in zip(own_step, base_step, strict=True)]
    backward = [total - part for total, part in zip(whole, forward, strict=True)]
    row["forward_us"] = quantiles([each / operators for each in forward])._asdict()
    row["backward_us"] = quantiles([each / recipes for each in backward])._asdict()
    return row
