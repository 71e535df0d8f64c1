"""What a layer, or a checkpointed chunk of layers, holds in forward and in backward, with its weights. No torch.

Where ranks gather weights, FSDP2 holds what a layer's weights arrived in until the next layer's have, in forward, and
asks for the weights of the layer below as soon as a layer's backward begins.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from megaselect.prediction.layer_steps import INSIDE_FULL, StepContext, run_backward, run_forward
from megaselect.prediction.saved_bytes import layer_tensors
from megaselect.prediction.simulated_allocator import SimulatedAllocator
from megaselect.recomputation.plan import Chunk, RecomputePlan


class BackwardBytes(NamedTuple):
    """The most that a backward holds between others, of the first layers, of the last ones, of all: they differ where
    ranks gather weights, by those of the layer below, and by the reduced gradient of the layer above.
    """

    between: int
    first: int
    last: int
    all: int

    def at(self, first: bool, last: bool) -> int:
        """Where nothing comes before, or after."""
        return self[first + 2 * last]


class ChunkBytes(NamedTuple):
    """A layer or chunk of layers: what it keeps; the most that its forward and its backward hold, over what was held
    before by others (backward: what it keeps included, with the gradient that comes in).
    """

    kept: int
    forward: int
    backward: BackwardBytes


def of_chunk(context: StepContext, plan: RecomputePlan, chunk: Chunk) -> ChunkBytes:
    """Of a chunk of a plan."""
    return chunk_bytes(context, plan.modules[chunk.first], chunk.checkpointed, chunk.count)


@functools.lru_cache(maxsize=4096)
def chunk_bytes(context: StepContext, modules: frozenset[str], checkpointed: bool, count: int) -> ChunkBytes:
    """Of a plain layer that recomputes `modules` (count 1), or of a checkpointed chunk of `count` layers."""
    shape, layer = context.shape, context.layer
    kept = shape.hidden_bytes if checkpointed else sum(layer_tensors(shape, modules).values())
    backward = _checkpointed_backward if checkpointed else _plain_backward
    places = [(first, last) for last in (False, True) for first in (False, True)]
    if not context.sharing.is_cut:
        places = places[:1] * len(places)
    return ChunkBytes(
        kept + count * layer.held_from_forward,
        _forward(context, modules, checkpointed, count),
        BackwardBytes(*(backward(context, modules, count, *place) for place in places)),
    )


def _forward(context: StepContext, modules: frozenset[str], checkpointed: bool, count: int) -> int:
    """The weights of the layer before, as they arrived, are there at first."""
    shape, layer, allocator = context.shape, context.layer, SimulatedAllocator()
    allocator.make({"block input": shape.hidden_bytes, "later input": shape.hidden_bytes if count > 1 else 0})
    allocator.hold((count - 1) * layer.held_from_forward)
    allocator.brief(2 * layer.gathered + layer.sent)
    allocator.hold(2 * layer.gathered)  # whole, and as they arrived
    run_forward(allocator, context, INSIDE_FULL if checkpointed else modules, kept=not checkpointed)
    kept = allocator.held - 2 * layer.gathered
    assert checkpointed or kept == sum(layer_tensors(shape, modules).values()), kept
    return allocator.peak


def _plain_backward(context: StepContext, modules: frozenset[str], _: int, first: bool, last: bool) -> int:
    allocator = SimulatedAllocator()
    allocator.make({**layer_tensors(context.shape, modules), "gradient": context.shape.hidden_bytes})
    reduced = _begin(allocator, context, 1, first, last)
    run_backward(allocator, context, modules)
    _reduce(allocator, context, reduced)
    return allocator.peak


def _checkpointed_backward(context: StepContext, _: frozenset[str], count: int, first: bool, last: bool) -> int:
    shape, allocator = context.shape, SimulatedAllocator()
    allocator.make({"gradient": shape.hidden_bytes})
    reduced = _begin(allocator, context, count, first, last)
    for layer in range(count):
        arrived = _gather_again(allocator, context, layer, count)
        allocator.make({f"{layer} block input": shape.hidden_bytes})
        run_forward(allocator, context, INSIDE_FULL, kept=True, prefix=f"{layer} ")
        allocator.release(arrived)
    for layer in reversed(range(count)):
        if layer == 0 and count > 1 and not first and context.sharing.frees_after_forward:
            context.layer.gather(allocator)
        run_backward(allocator, context, INSIDE_FULL, prefix=f"{layer} ")
        reduced = _reduce(allocator, context, reduced)
    return allocator.peak


def _begin(allocator: SimulatedAllocator, context: StepContext, count: int, first: bool, last: bool) -> int:
    """The weights of a chunk's last layer are whole, and those of the layer below asked for.

    The reduced gradient of the layer above, which is freed when that of this one is there.
    """
    layer = context.layer
    reduced = 0 if last else layer.reduced
    allocator.hold(reduced + count * layer.held_from_forward)
    if context.sharing.frees_after_forward:
        allocator.hold(layer.gathered)  # asked for by the layer above
        layer.copy_out(allocator)
        if count > 1 or not first:
            layer.gather(allocator)
    return reduced


def _gather_again(allocator: SimulatedAllocator, context: StepContext, layer: int, count: int) -> int:
    """For the second forward of a chunk's layer: its weights as they arrived, which go when that is over."""
    group = context.layer
    if not context.sharing.frees_after_forward or layer == count - 1:
        return 0
    if layer < count - 2:  # that of the last but one is there
        group.gather(allocator)
    allocator.hold(group.gathered)
    return group.gathered


def _reduce(allocator: SimulatedAllocator, context: StepContext, before: int) -> int:
    """A layer's gradients leave, if they leave together; what is left for the next to free."""
    # Where a hook takes them, the first layernorm's backward is not quite over: what came in is still there.
    coming_in = context.shape.hidden_bytes if context.sharing.sums_parts else 0
    allocator.hold(coming_in)
    if context.sharing.takes_gradients:
        context.layer.reduce(allocator, context.accumulating, before)
    allocator.release(coming_in)
    return context.layer.reduced
