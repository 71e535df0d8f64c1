"""Which operators run again in backward so that what is saved fits a budget, in the least time.

A value that backward needs is saved, or its operator runs again; then what that operator reads is needed too. To weigh
bytes against time at one price is a minimum cut of a graph, and is solved exactly (Picard 1976, maximum closure). The
price is searched for by bisection; between the two prices around the budget, operators are taken back one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import networkx

from megaselect.recomputation.tape.graph import Graph, GraphValue
from megaselect.recomputation.tape.values import Place

_INFINITE = None  # networkx takes an edge without a capacity for one
_STEPS = 24  # of the bisection: prices are a factor of 2 apart at first


@dataclass(frozen=True)
class Cut:
    """rerun: places of the operators that run again. saved: bytes. seconds: of what runs again."""

    rerun: frozenset[Place]
    saved: int
    seconds: float


def saved_bytes(graph: Graph, rerun: frozenset[Place]) -> int | None:
    """What is saved where the operators of `rerun` run again; None where something must be saved that cannot be."""
    total = 0
    seen: set[int] = set()
    todo = [value.number for value in graph.values.values() if value.is_needed]
    used: set[Place] = set()
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        value = graph.values[number]
        if value.maker is not None and value.maker in rerun:
            if value.maker not in used:
                used.add(value.maker)
                total += graph.operators[value.maker].state_bytes
                todo += graph.operators[value.maker].reads
        elif not value.can_be_saved:
            return None
        else:
            total += value.nbytes
    return total


def used_operators(graph: Graph, rerun: frozenset[Place]) -> frozenset[Place]:
    """Those of `rerun` that something needs."""
    used: set[Place] = set()
    todo = [value for value in graph.values.values() if value.is_needed]
    seen: set[int] = set()
    while todo:
        value = todo.pop()
        if value.number not in seen:
            seen.add(value.number)
            if value.maker in rerun and value.maker is not None:
                used.add(value.maker)
                todo += [graph.values[number] for number in graph.operators[value.maker].reads]
    return frozenset(used)


def fastest(graph: Graph, seconds: Mapping[Place, float], budget: int) -> Cut | None:
    """The least time to run again with at most `budget` bytes saved; None where even the fewest bytes are more."""
    nothing = _cut(graph, seconds, frozenset())
    if nothing is not None and nothing.saved <= budget:
        return nothing
    low, high = 0.0, 1e15  # bytes that a second is worth
    fits = cheapest(graph, seconds, low)
    if fits is None or fits.saved > budget:
        return None
    over: Cut | None = nothing
    low = 1.0
    for _ in range(_STEPS):
        price = math.sqrt(low * high)
        cut = cheapest(graph, seconds, price)
        if cut is not None and cut.saved <= budget:
            fits, low = min(fits, cut, key=lambda one: one.seconds), price
        else:
            over, high = cut, price
        if high / low < 1.05 or (over is not None and fits.rerun == over.rerun):
            break
    return _taken_back(graph, seconds, fits, over.rerun if over else frozenset(), budget)


def _taken_back(graph: Graph, seconds: Mapping[Place, float], cut: Cut, over: frozenset[Place], budget: int) -> Cut:
    """The dearest operators that still fit are not run again after all."""
    for number in sorted(cut.rerun - over, key=lambda one: -seconds[one]):
        if number not in cut.rerun:
            continue
        fewer = _cut(graph, seconds, cut.rerun - {number})
        if fewer is not None and fewer.saved <= budget and fewer.seconds < cut.seconds:
            cut = fewer
    return cut


def _cut(graph: Graph, seconds: Mapping[Place, float], rerun: Iterable[Place]) -> Cut | None:
    used = used_operators(graph, frozenset(rerun))
    saved = saved_bytes(graph, used)
    return None if saved is None else Cut(used, saved, sum(seconds[number] for number in used))


def cheapest(graph: Graph, seconds: Mapping[Place, float], price: float) -> Cut | None:
    """The least of bytes + price * seconds; None where something must be saved that cannot be."""
    network = networkx.DiGraph()
    for value in graph.values.values():
        _add_value(network, graph, value)
    for number, operator in graph.operators.items():
        network.add_edge(("run", number), "no", capacity=price * seconds[number] + operator.state_bytes)
        for read in operator.reads:
            network.add_edge(("run", number), ("value", read))
    if "yes" not in network or "no" not in network:
        return _cut(graph, seconds, frozenset())
    _, (yes, _no) = networkx.minimum_cut(network, "yes", "no", flow_func=networkx.algorithms.flow.boykov_kolmogorov)
    return _cut(graph, seconds, (name[1] for name in yes if name[0] == "run"))


def _add_value(network: networkx.DiGraph, graph: Graph, value: GraphValue) -> None:
    if value.is_needed:
        network.add_edge("yes", ("value", value.number))
    target = "no" if value.maker is None else ("run", value.maker)
    if value.can_be_saved:
        network.add_edge(("value", value.number), target, capacity=float(value.nbytes))
    else:
        network.add_edge(("value", value.number), target)
