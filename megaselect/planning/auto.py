"""`--recompute auto`: from a budget of bytes to the fastest plan whose predicted peak is within it. No torch.

Bytes are those of megaselect/prediction/peak.py; costs come from measured times (megaselect/models/gpt/layer_times.py)
or from an assumption about the device (megaselect/prediction/assumed_time.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from megaselect.distributed.layout import Layout
from megaselect.errors import RecomputeError
from megaselect.planning.planner import LayerChoice, Limits, cheapest, plan_from
from megaselect.prediction.assumed_time import PICOSECONDS, DeviceSpeed, layer_moved_bytes, layer_picoseconds
from megaselect.prediction.chunks import chunk_bytes
from megaselect.prediction.flops import layer_flops
from megaselect.prediction.peak import Peak, Situation, Surroundings, step_peak, surroundings
from megaselect.prediction.saved_bytes import LayerShape, has_region, outside_tensors
from megaselect.prediction.sharing import Sharing
from megaselect.prediction.weights import StaticBytes, static_bytes
from megaselect.recomputation.plan import RecomputePlan, no_recompute
from megaselect.recompute_modules import OTHER_MODULES, attention_sets

if TYPE_CHECKING:
    from megaselect.config import Config

ATTENTION_SETS = tuple(frozenset(names) for names in attention_sets())
OTHER_SETS = tuple(
    frozenset(names)
    for count in range(len(OTHER_MODULES) + 1)
    for names in itertools.combinations(OTHER_MODULES, count)
)


class Costs(NamedTuple):
    """Picoseconds that a layer's recomputation costs.

    attention: of each set of the modules in attention. others: of each other module; they add up. layer: of all of it.
    """

    attention: dict[frozenset[str], int]
    others: dict[str, int]
    layer: int

    def of(self, modules: frozenset[str]) -> int:
        """A layer that recomputes `modules`."""
        others = modules & self.others.keys()
        return self.attention[modules - others] + sum(self.others[name] for name in others)

    def to_list(self) -> list[Any]:
        """As JSON can hold it."""
        return [[[sorted(modules), cost] for modules, cost in self.attention.items()], self.others, self.layer]

    @classmethod
    def from_list(cls, told: list[Any]) -> Self:
        """The inverse of to_list."""
        attention, others, layer = told
        return cls({frozenset(modules): cost for modules, cost in attention}, others, layer)


class AutoPlan(NamedTuple):
    """A plan within a budget, the peak predicted for it, and its predicted seconds beyond `none` in a micro-batch."""

    plan: RecomputePlan
    peak: Peak
    extra_seconds: float
    budget_bytes: int


@dataclass(frozen=True)
class Problem:
    """A model on one device, or on one rank: what of it a plan does not change."""

    shape: LayerShape
    layers: int
    static: StaticBytes
    situation: Situation


def assumed_costs(shape: LayerShape, speed: DeviceSpeed) -> Costs:
    """From FLOPs and bytes moved."""

    layer = speed.seconds(layer_flops(shape), layer_moved_bytes(shape, frozenset()) / 3)
    attention = {modules: layer_picoseconds(shape, modules, speed) for modules in ATTENTION_SETS}
    others = {name: layer_picoseconds(shape, frozenset({name}), speed) for name in OTHER_MODULES}
    return Costs(attention, others, round(PICOSECONDS * layer))


def problem_of(config: Config, element_bytes: int, on_gpu: bool, layout: Layout | None = None) -> Problem:
    """The config's model on one device, or on the fullest rank of a layout, the first."""
    shape, layers = LayerShape.of(config, element_bytes), config.model.num_layers
    layout = replace(layout or Layout(), rank=0)
    micro_batches = config.training.global_batch_size // (config.training.micro_batch_size * layout.ranks)
    situation = Situation(layers, micro_batches, on_gpu, sharing=Sharing(layout, config.parallel.reduction))
    return Problem(shape, layers, static_bytes(shape, layers, layout), situation)


def fastest_plan(problem: Problem, make_costs: Callable[[], Costs], budget_bytes: int) -> AutoPlan:
    """`none` where that fits, without a call of make_costs.

    Raises RecomputeError where no plan fits, with the bytes that are missing.
    """
    everything = no_recompute(problem.layers, mode="auto")
    peak = step_peak(problem.shape, everything, problem.static, problem.situation)
    if peak.bytes <= budget_bytes:
        return AutoPlan(everything, peak, 0.0, budget_bytes)
    costs = make_costs()
    found = [solved for solved in _solutions(problem, costs, budget_bytes) if solved]
    if found:
        best = min(found, key=lambda solved: solved[0])
        plan = best[1]
        peak = step_peak(problem.shape, plan, problem.static, problem.situation)
        assert peak.bytes <= budget_bytes, (peak, budget_bytes)
        return AutoPlan(plan, peak, best[0] / PICOSECONDS, budget_bytes)
    least = smallest_peak(problem, costs)
    raise RecomputeError(
        f"--recompute auto cannot keep a step within --memory {budget_bytes:,} bytes: the least that any plan needs is "
        f"{least.bytes:,} bytes ({least.bytes - budget_bytes:,} more, in the {least.moment}), of which "
        f"{problem.static.total - problem.static.gradients:,} are weights and optimizer state: raise --memory or lower "
        "--training.micro-batch-size"
    )


def smallest_peak(problem: Problem, costs: Costs) -> Peak:
    """The least peak of any plan, found by halving the range of budgets."""

    def peak_of(plan: RecomputePlan) -> Peak:
        return step_peak(problem.shape, plan, problem.static, problem.situation)

    best, too_little = peak_of(no_recompute(problem.layers)), 0
    while best.bytes - too_little > 1:
        middle = (too_little + best.bytes) // 2
        fitting = [peak_of(solved[1]) for solved in _solutions(problem, costs, middle) if solved]
        if fitting:
            best = min(fitting, key=lambda peak: peak.bytes)
            assert best.bytes <= middle, (best, middle)
        else:
            too_little = middle
    return best


def _solutions(problem: Problem, costs: Costs, budget_bytes: int) -> Iterator[tuple[int, RecomputePlan] | None]:
    """(cost, plan) for the embedding's mask saved and recomputed, with and without regions where that changes bytes."""
    shape = problem.shape
    regions = (True,) if shape.attention_dropout or shape.hidden_dropout else (False, True)
    for recomputes_mask, with_regions in itertools.product((False, True), regions):
        choices = [choice for choice in all_choices(problem, costs) if with_regions or not _is_region(shape, choice)]
        around = _around(problem, recomputes_mask, with_regions)
        order = cheapest(choices, problem.layers, limits(around, problem, budget_bytes))
        yield (sum(choice.cost for choice in order), plan_from(order, recomputes_mask)) if order else None


def all_choices(problem: Problem, costs: Costs) -> list[LayerChoice]:
    """Every set of modules for a layer, and a checkpointed chunk of every length."""
    context = problem.situation.context(problem.shape)
    choices = []
    for modules in (first | second for first in ATTENTION_SETS for second in OTHER_SETS):
        choices.append(LayerChoice(modules, False, 1, *chunk_bytes(context, modules, False, 1), costs.of(modules)))
    nothing: frozenset[str] = frozenset()
    for count in range(1, problem.layers + 1):
        size = chunk_bytes(context, nothing, True, count)
        choices.append(LayerChoice(nothing, True, count, *size, count * costs.layer))
    return choices


def _is_region(shape: LayerShape, choice: LayerChoice) -> bool:
    """Whether it keeps the sample indices, dropout or not."""
    return has_region(shape, choice.checkpointed, choice.modules)


def _around(problem: Problem, recomputes_mask: bool, with_regions: bool) -> Surroundings:
    nothing: frozenset[str] = frozenset()
    outside = outside_tensors(problem.shape, RecomputePlan("auto", (nothing,), (), recomputes_mask), with_regions)
    context = problem.situation.context(problem.shape)
    return surroundings(context, outside, problem.static, problem.situation)


def limits(around: Surroundings, problem: Problem, budget_bytes: int) -> Limits:
    """What a budget leaves to the layers; nothing where what is around them needs more than all of it."""
    fixed = max(peak.bytes for peak in around.moments(0, problem.layers))
    if fixed > budget_bytes:
        return Limits(-1, -1, -1, 0)
    return Limits(
        forward=budget_bytes - around.before,
        after_layers=budget_bytes - around.before - around.loss,
        backward=budget_bytes - around.behind,
        gradients_per_layer=around.gradients_per_layer,
    )
