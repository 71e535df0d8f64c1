"""The most bytes that a training step holds at once, predicted. No torch.

A step is walked through as it runs: forward layer by layer, the loss, backward layer by layer (with what each layer
runs again), the embeddings, the optimizer. Counted are tensors; not counted are what a GPU's allocator rounds up or
cannot use, and the workspaces of matrix libraries.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from megaselect.prediction.chunks import of_chunk
from megaselect.prediction.layer_steps import StepContext
from megaselect.prediction.saved_bytes import FP32_BYTES, LayerShape, outside_tensors
from megaselect.prediction.sharing import EndOfStep, ParameterGroup, Sharing
from megaselect.prediction.simulated_allocator import SimulatedAllocator
from megaselect.prediction.weights import (
    StaticBytes,
    embedding_parameters,
    norm_bytes,
    outside_parameters,
    position_parameters,
    static_bytes,
)
from megaselect.recomputation.plan import RecomputePlan


class Peak(NamedTuple):
    """The most bytes, and where in the step: `forward`, `loss`, `backward of layers.3`, `embedding`, `optimizer`."""

    bytes: int
    moment: str


def step_peak(shape: LayerShape, plan: RecomputePlan, static: StaticBytes, situation: Situation) -> Peak:
    """Of an optimizer step, in a run's second step or later."""
    context = situation.context(shape)
    around = surroundings(context, outside_tensors(shape, plan), static, situation)
    moments = _layer_moments(context, plan, around)
    return max([*moments, *around.moments(_kept(context, plan), len(plan.modules))], key=lambda peak: peak.bytes)


@dataclass(frozen=True)
class Situation:
    """Where a step runs. layers: of the rank. micro_batches: forward and backward passes of a rank in it. on_gpu: what
    our kernels for GPUs allocate inside an op counts too. first, last: the rank has the embeddings, the loss (both
    without a pipeline). waiting_bytes: kept by other micro-batches in the pipeline. sharing: among data-parallel ranks.
    """

    layers: int
    micro_batches: int = 1
    on_gpu: bool = False
    first: bool = True
    last: bool = True
    waiting_bytes: int = 0
    sharing: Sharing = field(default_factory=Sharing)

    def context(self, shape: LayerShape) -> StepContext:
        """What the layers of the step need to know: of several micro-batches those after the first hold the most."""
        return StepContext(shape, self.on_gpu, self.micro_batches > 1, self.sharing)


@dataclass(frozen=True)
class Surroundings:
    """Bytes around the layers of one micro-batch. before: held while they run forward. start: the most that is added to
    that up to when the first layer's weights arrive. loss: the most that the loss adds to that and to what the layers
    keep. behind: held while the layers run backward. embedding: the most that the embedding's backward adds to that and
    to the layers' gradients; gradients_per_layer: those of one layer. Where the rank has no loss or no embedding it
    adds nothing.
    """

    before: int
    start: int
    loss: int
    behind: int
    embedding: int
    optimizer: int
    gradients_per_layer: int

    def moments(self, kept: int, layers: int) -> list[Peak]:
        """The moments outside the layers, which keep `kept` bytes in all."""
        embedding = self.behind + layers * self.gradients_per_layer + self.embedding
        return [
            Peak(self.before + self.start, "forward of the embedding"),
            Peak(self.before + kept + self.loss, "loss"),
            Peak(embedding, "backward of the embedding"),
            Peak(self.optimizer, "optimizer"),
        ]


def surroundings(
    context: StepContext, outside: dict[str, int], static: StaticBytes, situation: Situation
) -> Surroundings:
    """Of a step of a model with these tensors outside the layers."""
    shape, layer = context.shape, context.layer
    rest = ParameterGroup.of(
        outside_parameters(shape, situation.first, situation.last), shape.element_bytes, situation.sharing
    )
    earlier = situation.layers * layer.part + rest.part if context.accumulating else 0
    # Of each layer what its scores' product does not read; of each micro-batch its loss; of one the scaled loss, and
    # the gradients of the two.
    scalars = situation.layers * shape.element_bytes + (situation.micro_batches + 3) * FP32_BYTES
    base = static.total - static.gradients + earlier + scalars + situation.waiting_bytes
    gone = {name for name in outside if name not in BEFORE_THE_LAYERS or not situation.first}
    before = base + sum(size for name, size in outside.items() if name not in gone) + rest.gathered
    final = context.gradient_bytes(2 * shape.hidden) if situation.last else 0
    # The output product's share of the tied embedding's gradient waits for the embedding's own.
    tied = embedding_parameters(shape) * shape.element_bytes if situation.last else 0
    ending = EndOfStep.of([*[layer] * situation.layers, rest])
    norm = norm_bytes(shape, situation.layers, situation.sharing.layout, situation.first, situation.last)
    return Surroundings(
        before=before,
        start=_start_bytes(context, rest),
        loss=_loss_allocator(context, outside).peak if situation.last else 0,
        behind=before + final + tied,
        embedding=_embedding_bytes(context, tied > 0, rest) if situation.first else 0,
        optimizer=static.total + scalars + situation.waiting_bytes + ending.filling + max(ending.exchange, norm),
        gradients_per_layer=context.gradients_per_layer,
    )


def _layer_moments(context: StepContext, plan: RecomputePlan, around: Surroundings) -> list[Peak]:
    """Each layer's or chunk's forward and backward."""
    chunks = [(chunk, of_chunk(context, plan, chunk)) for chunk in plan.chunks]
    layers = len(plan.modules)
    peaks, kept, done = [], 0, 0
    for chunk, size in chunks:
        done += chunk.count
        gradients = (layers - done) * around.gradients_per_layer
        backward = size.backward.at(first=chunk.first == 0, last=done == layers)
        peaks.append(Peak(around.before + kept + size.forward, f"forward of {chunk.name}"))
        peaks.append(Peak(around.behind + kept + gradients + backward, f"backward of {chunk.name}"))
        kept += size.kept
    return peaks


def _kept(context: StepContext, plan: RecomputePlan) -> int:
    return sum(of_chunk(context, plan, chunk).kept for chunk in plan.chunks)


BEFORE_THE_LAYERS = ("token indices", "targets", "sample indices", "embedding dropout mask")


def _start_bytes(context: StepContext, rest: ParameterGroup) -> int:
    """The embedding's forward, while what the weights outside the layers arrived in is there."""
    hidden, layer = context.shape.hidden_bytes, context.layer
    return rest.gathered + max(2 * hidden, hidden + layer.gathered + layer.sent) if rest.gathered else 0


def _loss_allocator(context: StepContext, outside: dict[str, int]) -> SimulatedAllocator:
    """Final layernorm, output product and cross-entropy, forward and backward; the last layer's output is live."""
    shape, layer, allocator = context.shape, context.layer, SimulatedAllocator()
    allocator.hold(layer.gathered)  # what the last layer's weights arrived in
    allocator.make({name: size for name, size in outside.items() if name not in BEFORE_THE_LAYERS})
    allocator.release(layer.gathered)
    if context.sharing.frees_after_forward:
        layer.gather(allocator)  # ahead of the last layer's backward
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


def _embedding_bytes(context: StepContext, is_tied: bool, rest: ParameterGroup) -> int:
    """The gradient through the embedding's dropout, the token embedding's gradient, and its sum with the output's."""
    shape, allocator = context.shape, SimulatedAllocator()
    allocator.hold(context.layer.reduced)  # the first layer's
    allocator.make({"gradient": shape.hidden_bytes})
    if shape.hidden_dropout:
        allocator.make({"branch": shape.hidden_bytes})
        allocator.free("gradient")
    weight = embedding_parameters(shape)
    context.settle(allocator, position_parameters(shape))
    allocator.brief((2 if is_tied else 1) * weight * shape.element_bytes)
    allocator.free("gradient", "branch")
    if context.sharing.takes_gradients:
        allocator.hold(0 if is_tied else weight * shape.element_bytes)
        rest.reduce(allocator, context.accumulating, context.layer.reduced)
    elif shape.element_bytes < FP32_BYTES:
        allocator.brief(0 if context.accumulating else weight * FP32_BYTES)
    return allocator.peak


def predicted_peak(shape: LayerShape, plan: RecomputePlan, micro_batches: int = 1, on_gpu: bool = False) -> Peak:
    """step_peak of a whole model on one device."""
    layers = len(plan.modules)
    return step_peak(shape, plan, static_bytes(shape, layers), Situation(layers, micro_batches, on_gpu))
