"""The fastest plan that fits a budget of bytes, exactly, by dynamic programming over layers. No torch.

Every layer is plain with some set of modules, or a chunk of one or more layers is checkpointed. A choice has the bytes
that it keeps, the most that its forward and its backward hold, and its cost in time. All layers are alike, but where
they stand matters: with a layer's backward, what the layers before it keep is still there, and the gradients of those
after it are there already. So states are (bytes kept so far, cost so far) after l layers; of two states the one with
more bytes and more cost is dropped, since every later limit only asks for fewer bytes. What remains at the end is the
optimum. Bytes and costs are integers: nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megaselect.prediction.chunks import BackwardBytes
from megaselect.recomputation.plan import Chunk, RecomputePlan


@dataclass(frozen=True)
class LayerChoice:
    """What may be done with `count` layers. kept, forward, backward: bytes, as in megaselect/prediction/chunks.py.

    cost: picoseconds beyond keeping everything.
    """

    modules: frozenset[str]
    checkpointed: bool
    count: int
    kept: int
    forward: int
    backward: BackwardBytes
    cost: int


@dataclass(frozen=True)
class Limits:
    """Bytes that are left to the layers at each moment of a step, after what others hold. Negative: none is left.

    forward: while the layers run. after_layers: for what they keep, at the loss. backward: in the last layer's
    backward; gradients_per_layer: what each layer whose backward is over has added by then.
    """

    forward: int
    after_layers: int
    backward: int
    gradients_per_layer: int


def cheapest(choices: Sequence[LayerChoice], layers: int, limits: Limits) -> list[LayerChoice] | None:
    """The choices of least total cost, then of fewest bytes kept, first layer first; None where none fit."""
    choices = _undominated(choices)
    columns = [_first_column()]
    for layer in range(1, layers + 1):
        reached = [
            _extended(columns[layer - choice.count], number, choice, layer == choice.count, layers - layer, limits)
            for number, choice in enumerate(choices)
            if choice.count <= layer
        ]
        nowhere = columns[0][:, :0]  # for a layer that no choice ends at
        columns.append(_pareto(np.concatenate([nowhere, *reached], axis=1)))
    final = columns[-1][:, columns[-1][KEPT] <= limits.after_layers]
    if not final.shape[1]:
        return None
    return _in_one_order(_traced(choices, columns, final), layers, limits)


KEPT, COST, CHOICE, FROM = range(4)  # rows of a column of states


def _first_column() -> np.ndarray:
    return np.zeros((4, 1), dtype=np.int64)


def _extended(
    column: np.ndarray, number: int, choice: LayerChoice, first: bool, later: int, limits: Limits
) -> np.ndarray:
    """The states of `column` that can go on with a choice, after it; `later` layers follow."""
    backward = choice.backward.at(first, later == 0)
    room = min(limits.forward - choice.forward, limits.backward - later * limits.gradients_per_layer - backward)
    places = np.flatnonzero(column[KEPT] <= room)
    reached = column[:, places]
    reached[KEPT] += choice.kept
    reached[COST] += choice.cost
    reached[CHOICE], reached[FROM] = number, places
    return reached


def _pareto(states: np.ndarray) -> np.ndarray:
    """Those than which no other has fewer bytes and less cost, by bytes."""
    states = states[:, np.lexsort((states[COST], states[KEPT]))]
    best_before = np.minimum.accumulate(np.concatenate([[np.iinfo(np.int64).max], states[COST]]))[:-1]
    return states[:, states[COST] < best_before]


def _traced(choices: Sequence[LayerChoice], columns: list[np.ndarray], final: np.ndarray) -> list[LayerChoice]:
    """The way to the cheapest final state; the last of the frontier is the cheapest."""
    taken: list[LayerChoice] = []
    state, layer = final[:, -1], len(columns) - 1
    while layer:
        choice = choices[state[CHOICE]]
        taken.append(choice)
        layer -= choice.count
        state = columns[layer][:, state[FROM]]
    return taken[::-1]


def _undominated(choices: Sequence[LayerChoice]) -> list[LayerChoice]:
    """Without choices that another of the same length beats, or equals and precedes, in everything."""

    def measures(choice: LayerChoice) -> tuple[int, ...]:
        return choice.kept, choice.forward, *choice.backward, choice.cost

    def beats(other: int, number: int) -> bool:
        first, second = choices[other], choices[number]
        if first.count != second.count or other == number:
            return False
        no_worse = all(a <= b for a, b in zip(measures(first), measures(second), strict=True))
        return no_worse and (measures(first) != measures(second) or other < number)

    numbers = range(len(choices))
    return [choices[number] for number in numbers if not any(beats(other, number) for other in numbers)]


def _in_one_order(taken: list[LayerChoice], layers: int, limits: Limits) -> list[LayerChoice]:
    """Equal choices side by side, where such an order fits too: the cost is the same, and a plan is easier to read."""
    by_bytes = sorted(taken, key=lambda choice: (choice.kept / choice.count, choice.backward, sorted(choice.modules)))
    for order in (by_bytes, by_bytes[::-1]):
        if fits(order, layers, limits):
            return order
    return taken


def fits(order: Sequence[LayerChoice], layers: int, limits: Limits) -> bool:
    """Whether choices in this order stay within the limits at every moment."""
    kept, done = 0, 0
    for choice in order:
        first, done = done == 0, done + choice.count
        gradients = (layers - done) * limits.gradients_per_layer
        backward = choice.backward.at(first, done == layers)
        if kept + choice.forward > limits.forward or kept + backward > limits.backward - gradients:
            return False
        kept += choice.kept
    return kept <= limits.after_layers


def plan_from(order: Sequence[LayerChoice], recompute_embedding_mask: bool) -> RecomputePlan:
    """Choices, first layer first, as a plan of mode `auto`."""
    modules: list[frozenset[str]] = []
    chunks: list[Chunk] = []
    for choice in order:
        chunks.append(Chunk(len(modules), choice.count, choice.checkpointed))
        modules += [choice.modules] * choice.count
    return RecomputePlan("auto", tuple(modules), tuple(chunks), recompute_embedding_mask)
