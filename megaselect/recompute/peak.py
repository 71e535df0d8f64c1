"""The most bytes that a training step holds at once, predicted. No torch.

A step is walked through as it runs: forward layer by layer, the loss, backward layer by layer (with what each layer
runs again), the embeddings, the optimizer. Counted are tensors; not counted are what a GPU's allocator rounds up or
cannot use, and the workspaces of matrix libraries.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import NamedTuple

from megaselect.recompute.heap import Heap
from megaselect.recompute.layer_steps import INSIDE_FULL, Setting, run_backward, run_forward
from megaselect.recompute.plan import Chunk, RecomputePlan
from megaselect.recompute.theory import FP32_BYTES, Shape, layer_tensors, outside_tensors
from megaselect.recompute.weights import (
    LayerWeights,
    StaticBytes,
    embedding_parameters,
    parameter_count,
    position_parameters,
    static_bytes,
    tensor_count,
)


class ChunkBytes(NamedTuple):
    """A layer or chunk of layers: what it keeps; the most that its forward and its backward hold, over what was held
    before by others (backward: what it keeps included, with the gradient that comes in).
    """

    kept: int
    forward: int
    backward: int


class Peak(NamedTuple):
    """The most bytes, and where in the step: `forward`, `loss`, `backward of layers.3`, `embedding`, `optimizer`."""

    bytes: int
    moment: str


@functools.lru_cache(maxsize=4096)
def chunk_bytes(setting: Setting, modules: frozenset[str], checkpointed: bool, count: int) -> ChunkBytes:
    """Of a plain layer that rebuilds `modules` (count 1), or of a checkpointed chunk of `count` layers."""
    shape = setting.shape
    if not checkpointed:
        heap = Heap()
        heap.make({"block input": shape.hidden_bytes})
        run_forward(heap, setting, modules, kept=True)
        kept = sum(layer_tensors(shape, modules).values())
        assert heap.held == kept, (heap.held, kept)
        back = Heap()
        back.make({**layer_tensors(shape, modules), "gradient": shape.hidden_bytes})
        run_backward(back, setting, modules)
        return ChunkBytes(kept, heap.peak, back.peak)
    forward = Heap(2 * shape.hidden_bytes if count > 1 else shape.hidden_bytes)
    run_forward(forward, setting, INSIDE_FULL, kept=False)
    back = Heap()
    back.make({"gradient": shape.hidden_bytes})
    for layer in range(count):
        back.make({f"{layer} block input": shape.hidden_bytes})
        run_forward(back, setting, INSIDE_FULL, kept=True, prefix=f"{layer} ")
    for layer in reversed(range(count)):
        run_backward(back, setting, INSIDE_FULL, prefix=f"{layer} ")
    return ChunkBytes(shape.hidden_bytes, forward.peak, back.peak)


def of_chunk(setting: Setting, plan: RecomputePlan, chunk: Chunk) -> ChunkBytes:
    """The same for a chunk of a plan."""
    return chunk_bytes(setting, plan.modules[chunk.first], chunk.checkpointed, chunk.count)


def step_peak(
    shape: Shape, plan: RecomputePlan, static: StaticBytes, micro_batches: int = 1, on_gpu: bool = False
) -> Peak:
    """Of an optimizer step of `micro_batches` forward and backward passes, in a run's second step or later.

    on_gpu: what our kernels for GPUs allocate inside an op counts too.
    """
    first = Setting(shape, on_gpu, accumulating=False)
    schedules = [first] if micro_batches == 1 else [first, replace(first, accumulating=True)]
    moments = [moment for setting in schedules for moment in _moments(setting, plan, static)]
    return max(moments, key=lambda peak: peak.bytes)


def _moments(setting: Setting, plan: RecomputePlan, static: StaticBytes) -> list[Peak]:
    """The highest point of each part of a step."""
    shape = setting.shape
    outside = outside_tensors(shape, plan)
    base = static.total - static.gradients + (static.gradients if setting.accumulating else 0)
    chunks = [(chunk, of_chunk(setting, plan, chunk)) for chunk in plan.chunks]
    held = base + sum(outside.get(name, 0) for name in BEFORE_THE_LAYERS)
    peaks = []
    for chunk, size in chunks:
        peaks.append(Peak(held + size.forward, f"forward of {chunk.name}"))
        held += size.kept
    loss = _loss_heap(setting, outside)
    peaks.append(Peak(held + loss.peak, "loss"))
    waiting = embedding_parameters(shape) * shape.element_bytes  # the output product's share of the tied weight
    gradients = 0 if setting.accumulating else 2 * shape.hidden * FP32_BYTES
    for chunk, size in reversed(chunks):
        held -= size.kept
        peaks.append(Peak(held + waiting + gradients + size.backward, f"backward of {chunk.name}"))
        gradients += 0 if setting.accumulating else chunk.count * LayerWeights.of(shape).total * FP32_BYTES
    peaks.append(Peak(held + waiting + gradients + _embedding_bytes(setting, outside), "backward of the embedding"))
    return [*peaks, Peak(static.total, "optimizer")]


BEFORE_THE_LAYERS = ("token indices", "targets", "sample indices", "embedding dropout mask")


def _loss_heap(setting: Setting, outside: dict[str, int]) -> Heap:
    """Final layernorm, output product and cross-entropy, forward and backward; the last layer's output is live."""
    shape, heap = setting.shape, Heap()
    heap.make({name: size for name, size in outside.items() if name not in BEFORE_THE_LAYERS})
    hidden, weight = shape.tokens * shape.hidden * shape.element_bytes, embedding_parameters(shape)
    if shape.chunked_loss:
        heap.make({"of hidden": hidden})
        heap.brief(weight * shape.element_bytes + setting.inside(weight * FP32_BYTES))
    else:
        heap.brief(setting.inside(min(LOSS_CHUNK_BYTES, shape.tokens * shape.padded_vocab * FP32_BYTES)))
        heap.make({"of hidden": hidden})
        heap.brief(weight * shape.element_bytes)
    heap.hold(weight * shape.element_bytes)
    heap.free("logits", "final layernorm output", "log-sum-exp")
    heap.make({"gradient": shape.hidden_bytes})
    return heap


LOSS_CHUNK_BYTES = 1 << 27  # of fp32 at a time, on a GPU (kernels/cross_entropy.py)


def _embedding_bytes(setting: Setting, outside: dict[str, int]) -> int:
    """The gradient through the embedding's dropout, the token embedding's gradient, and both sums of it."""
    shape, heap = setting.shape, Heap()
    heap.make({"gradient": shape.hidden_bytes})
    if shape.hidden_dropout:
        heap.make({"branch": shape.hidden_bytes})
        heap.free("gradient")
    weight = embedding_parameters(shape)
    setting.settle(heap, position_parameters(shape))
    heap.brief(2 * weight * shape.element_bytes)  # the new one, and the sum with the output product's
    heap.free("gradient", "branch")
    if shape.element_bytes < FP32_BYTES:
        heap.brief(0 if setting.accumulating else weight * FP32_BYTES)
    return heap.peak


def predicted_peak(shape: Shape, plan: RecomputePlan, micro_batches: int = 1, on_gpu: bool = False) -> Peak:
    """step_peak of a whole model on one device."""
    layers = len(plan.modules)
    static = static_bytes(parameter_count(shape, layers), tensor_count(layers), shape.element_bytes)
    return step_peak(shape, plan, static, micro_batches, on_gpu)
