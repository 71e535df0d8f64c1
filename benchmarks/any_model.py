"""The part `any-model`: what `megaselect.recompute` costs and saves on models as they are, beside what others have."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable

import torch

from benchmarks.any_model_budgets import Known, budget_ways, compiled_ways, eager_ways
from benchmarks.any_model_shapes import FULL_SIZES, QUICK_SIZES, SHAPES, Sizes
from benchmarks.any_model_steps import compare_steps
from benchmarks.any_model_ways import Way
from benchmarks.operator_cost import cost_case
from benchmarks.runner import Bench, Case, Row

# Beyond the seconds that are measured: what is compared and counted before, and what is compiled.
INSPECTION_SECONDS, COMPILE_SECONDS, BUDGETS_SECONDS, COST_SECONDS = 60.0, 80.0, 240.0, 10.0
COMPILED_SHAPES = ("gpt2", "llama")  # one with and one without scores in memory: compiling takes minutes
BUDGETS_SHAPE = "gpt2"  # dropout on: masks can be wrong


def cases(arguments: argparse.Namespace, bench: Bench, _: torch.dtype) -> list[Case]:
    """Steps of each shape, what an operator costs, then compiled steps; with --budgets, last, equal bytes."""
    shapes = arguments.shape or tuple(SHAPES)
    sizes = _sizes(arguments)
    made = [_case(shape, "", sizes, eager_ways, INSPECTION_SECONDS + bench.seconds) for shape in shapes]
    made += [cost_case(shape, COST_SECONDS + bench.seconds) for shape in shapes]
    for shape in shapes:
        if shape in COMPILED_SHAPES:
            ways = functools.partial(compiled_ways, SHAPES[shape].judged)
            made.append(_case(shape, " compiled", sizes, ways, COMPILE_SECONDS + bench.seconds))
    if arguments.budgets:
        for shape in arguments.shape or (BUDGETS_SHAPE,):
            made.append(_case(shape, " budgets", sizes, budget_ways, BUDGETS_SECONDS + bench.seconds))
    return made


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK_SIZES if arguments.quick else FULL_SIZES
    given = {"layers": arguments.layers, "sequence": arguments.seq, "batch": arguments.micro_batch}
    return dataclasses.replace(sizes, **{name: value for name, value in given.items() if value is not None})


def _case(shape: str, kind: str, sizes: Sizes, ways_of: Callable[[Known], dict[str, Way]], seconds: float) -> Case:
    known = Known()
    ways = ways_of(known)
    run: Callable[[Bench], list[Row]] = functools.partial(compare_steps, shape, sizes, ways, counted=known.counted)
    key = f"{shape} L={sizes.layers} h={sizes.hidden} s={sizes.sequence} b={sizes.batch}{kind}"
    return Case(key, run, seconds, repr((sizes, list(ways))))
