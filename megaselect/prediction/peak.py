"""The most bytes that a training step holds at once, predicted. No torch.

A step is walked through as it runs: forward layer by layer, the loss, backward layer by layer (with what each layer
runs again), the embeddings, the optimizer. Counted are tensors; not counted are what a GPU's allocator rounds up or
cannot use, and the workspaces of matrix libraries.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

from megaselect.prediction.layer_steps import INSIDE_FULL, StepContext, run_backward, run_forward
from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape, layer_tensors, outside_tensors
from megaselect.prediction.simulated_allocator import SimulatedAllocator
from megaselect.prediction.weights import (
    LayerWeights,
    StaticBytes,
    embedding_parameters,
    parameter_count,
    position_parameters,
    static_bytes,
    tensor_count,
)
from megaselect.recomputation.plan import Chunk, RecomputePlan


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
def chunk_bytes(context: StepContext, modules: frozenset[str], checkpointed: bool, count: int) -> ChunkBytes:
    """Of a plain layer that recomputes `modules` (count 1), or of a checkpointed chunk of `count` layers."""
    shape = context.shape
    if not checkpointed:
        allocator = SimulatedAllocator()
        allocator.make({"block input": shape.hidden_bytes})
        run_forward(allocator, context, modules, kept=True)
        kept = sum(layer_tensors(shape, modules).values())
        assert allocator.held == kept, (allocator.held, kept)
        back = SimulatedAllocator()
        back.make({**layer_tensors(shape, modules), "gradient": shape.hidden_bytes})
        run_backward(back, context, modules)
        return ChunkBytes(kept, allocator.peak, back.peak)
    forward = SimulatedAllocator(2 * shape.hidden_bytes if count > 1 else shape.hidden_bytes)
    run_forward(forward, context, INSIDE_FULL, kept=False)
    back = SimulatedAllocator()
    back.make({"gradient": shape.hidden_bytes})
    for layer in range(count):
        back.make({f"{layer} block input": shape.hidden_bytes})
        run_forward(back, context, INSIDE_FULL, kept=True, prefix=f"{layer} ")
    for layer in reversed(range(count)):
        run_backward(back, context, INSIDE_FULL, prefix=f"{layer} ")
    return ChunkBytes(shape.hidden_bytes, forward.peak, back.peak)


def of_chunk(context: StepContext, plan: RecomputePlan, chunk: Chunk) -> ChunkBytes:
    """The same for a chunk of a plan."""
    return chunk_bytes(context, plan.modules[chunk.first], chunk.checkpointed, chunk.count)


def step_peak(shape: LayerShape, plan: RecomputePlan, static: StaticBytes, situation: Situation) -> Peak:
    """Of an optimizer step, in a run's second step or later."""
    context = situation.context(shape)
    around = surroundings(context, outside_tensors(shape, plan), static, situation)
    moments = _layer_moments(context, plan, around)
    return max([*moments, *around.moments(_kept(context, plan), len(plan.modules))], key=lambda peak: peak.bytes)


@dataclass(frozen=True)
class Situation:
    """Where a step runs. micro_batches: forward and backward passes in it. on_gpu: what our kernels for GPUs allocate
    inside an op counts too. first, last: the rank has the embeddings, the loss (both without a pipeline).
    waiting_bytes: kept by other micro-batches in the pipeline. gradient_ranks: replicas that share the gradients.
    """

    micro_batches: int = 1
    on_gpu: bool = False
    first: bool = True
    last: bool = True
    waiting_bytes: int = 0
    gradient_ranks: int = 1

    def context(self, shape: LayerShape) -> StepContext:
        """What the layers of the step need to know: of several micro-batches those after the first hold the most."""
        return StepContext(shape, self.on_gpu, accumulating=self.micro_batches > 1, gradient_ranks=self.gradient_ranks)


@dataclass(frozen=True)
class Surroundings:
    """Bytes around the layers of one micro-batch. before: held while they run forward. loss: the most that the loss
    adds to that and to what the layers keep. behind: held while the layers run backward. embedding: the most that the
    embedding's backward adds to that and to the layers' gradients; gradients_per_layer: those of one layer. Where the
    rank has no loss or no embedding it adds nothing.
    """

    before: int
    loss: int
    behind: int
    embedding: int
    optimizer: int
    gradients_per_layer: int

    def moments(self, kept: int, layers: int) -> list[Peak]:
        """The moments outside the layers, which keep `kept` bytes in all."""
        embedding = self.behind + layers * self.gradients_per_layer + self.embedding
        return [
            Peak(self.before + kept + self.loss, "loss"),
            Peak(embedding, "backward of the embedding"),
            Peak(self.optimizer, "optimizer"),
        ]


def surroundings(
    context: StepContext, outside: dict[str, int], static: StaticBytes, situation: Situation
) -> Surroundings:
    """Of a step of a model with these tensors outside the layers."""
    shape = context.shape
    base = static.total - (0 if context.accumulating else static.gradients) + situation.waiting_bytes
    gone = {name for name in outside if name not in BEFORE_THE_LAYERS or not situation.first}
    before = base + sum(size for name, size in outside.items() if name not in gone)
    final = context.gradient_bytes(2 * shape.hidden) if situation.last else 0
    # The output product's share of the tied embedding's gradient waits for the embedding's own.
    tied = embedding_parameters(shape) * shape.element_bytes if situation.last else 0
    behind = before + final + tied
    return Surroundings(
        before=before,
        loss=_loss_allocator(context, outside).peak if situation.last else 0,
        behind=behind,
        embedding=_embedding_bytes(context, tied > 0) if situation.first else 0,
        optimizer=static.total + situation.waiting_bytes,
        gradients_per_layer=context.gradient_bytes(LayerWeights.of(shape).total),
    )


def _layer_moments(context: StepContext, plan: RecomputePlan, around: Surroundings) -> list[Peak]:
    """Each layer's or chunk's forward and backward."""
    chunks = [(chunk, of_chunk(context, plan, chunk)) for chunk in plan.chunks]
    peaks, kept, done = [], 0, 0
    for chunk, size in chunks:
        done += chunk.count
        gradients = (len(plan.modules) - done) * around.gradients_per_layer
        peaks.append(Peak(around.before + kept + size.forward, f"forward of {chunk.name}"))
        peaks.append(Peak(around.behind + kept + gradients + size.backward, f"backward of {chunk.name}"))
        kept += size.kept
    return peaks


def _kept(context: StepContext, plan: RecomputePlan) -> int:
    return sum(of_chunk(context, plan, chunk).kept for chunk in plan.chunks)


BEFORE_THE_LAYERS = ("token indices", "targets", "sample indices", "embedding dropout mask")


def _loss_allocator(context: StepContext, outside: dict[str, int]) -> SimulatedAllocator:
    """Final layernorm, output product and cross-entropy, forward and backward; the last layer's output is live."""
    shape, allocator = context.shape, SimulatedAllocator()
    allocator.make({name: size for name, size in outside.items() if name not in BEFORE_THE_LAYERS})
    hidden, weight = shape.tokens * shape.hidden * shape.element_bytes, embedding_parameters(shape)
    if shape.chunked_loss:
        allocator.make({"of hidden": hidden})
        allocator.brief(weight * shape.element_bytes + context.inside(weight * FP32_BYTES))
    else:
        allocator.brief(context.inside(min(LOSS_CHUNK_BYTES, shape.tokens * shape.padded_vocab * FP32_BYTES)))
        allocator.make({"of hidden": hidden})
        allocator.brief(weight * shape.element_bytes)
    allocator.hold(weight * shape.element_bytes)
    allocator.free("logits", "final layernorm output", "log-sum-exp")
    allocator.make({"gradient": shape.hidden_bytes})
    return allocator


LOSS_CHUNK_BYTES = 1 << 27  # of fp32 at a time, on a GPU (kernels/cross_entropy.py)


def _embedding_bytes(context: StepContext, is_tied: bool) -> int:
    """The gradient through the embedding's dropout, the token embedding's gradient, and its sum with the output's."""
    shape, allocator = context.shape, SimulatedAllocator()
    allocator.make({"gradient": shape.hidden_bytes})
    if shape.hidden_dropout:
        allocator.make({"branch": shape.hidden_bytes})
        allocator.free("gradient")
    weight = embedding_parameters(shape)
    context.settle(allocator, position_parameters(shape))
    allocator.brief((2 if is_tied else 1) * weight * shape.element_bytes)
    allocator.free("gradient", "branch")
    if shape.element_bytes < FP32_BYTES:
        allocator.brief(0 if context.accumulating else weight * FP32_BYTES)
    return allocator.peak


def predicted_peak(shape: LayerShape, plan: RecomputePlan, micro_batches: int = 1, on_gpu: bool = False) -> Peak:
    """step_peak of a whole model on one device."""
    layers = len(plan.modules)
    static = static_bytes(parameter_count(shape, layers), tensor_count(layers), shape.element_bytes)
    return step_peak(shape, plan, static, Situation(micro_batches, on_gpu))
