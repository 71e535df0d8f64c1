"""What data-parallel ranks allocate to share a model and to add up its gradients, group by group. No torch.

A group is a layer's parameters, or those outside the layers. What a rank allocates for one is a sequence of tensors, as
megaselect/distributed and PyTorch's FSDP2 make and free them: see docs/scale.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from megaselect.distributed.layout import Layout
from megaselect.prediction.saved_bytes import FP32_BYTES
from megaselect.prediction.simulated_allocator import SimulatedAllocator
from megaselect.prediction.weights import ParameterShape


@dataclass(frozen=True)
class Sharing:
    """layout: of the fullest rank, the first. reduction: as in section `parallel`."""

    layout: Layout = field(default_factory=Layout)
    reduction: str = "ordered"

    @property
    def is_cut(self) -> bool:
        """Whether ranks hold rows of the weights, and gather whole ones."""
        return self.layout.shards > 1

    @property
    def frees_after_forward(self) -> bool:
        """Whether gathered weights are freed after forward, and gathered again for backward."""
        return self.is_cut and self.layout.sharding == "parameters"

    @property
    def sums_parts(self) -> bool:
        """Whether each rank holds the whole model, and a part of the gradients until the end of a step."""
        return self.layout.ranks > 1 and not self.is_cut and self.reduction == "ordered"

    @property
    def takes_gradients(self) -> bool:
        """Whether a group's gradients wait in the compute dtype until all are there, and then leave together."""
        return self.is_cut or self.sums_parts


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are gathered and reduced together. elements: of all; last_elements: of the one that comes last;
    shard: of the fullest rank's rows.
    """

    elements: int
    last_elements: int
    shard: int
    element_bytes: int
    sharing: Sharing

    @classmethod
    def of(cls, parameters: Iterable[ParameterShape], element_bytes: int, sharing: Sharing) -> ParameterGroup:
        """The group of these."""
        shapes = list(parameters)
        shard = sum(shape.shard(sharing.layout.shards).elements for shape in shapes)
        return cls(sum(shape.elements for shape in shapes), shapes[-1].elements, shard, element_bytes, sharing)

    @property
    def gathered(self) -> int:
        """The whole weights, rows filled up, in the compute dtype. What they arrive in is as large."""
        return self.shard * self.sharing.layout.shards * self.element_bytes if self.sharing.is_cut else 0

    @property
    def held_from_forward(self) -> int:
        """Of them those that are there from forward to backward."""
        return 0 if self.sharing.frees_after_forward else self.gathered

    @property
    def sent(self) -> int:
        """A rank's rows in the compute dtype, where that is not fp32: there while they are gathered."""
        return self.shard * self.element_bytes if self.sharing.is_cut and self.element_bytes < FP32_BYTES else 0

    @property
    def reduced(self) -> int:
        """The fp32 gradient that FSDP2 sends. It stays until the next group's backward is over."""
        return self.shard * self.sharing.layout.shards * FP32_BYTES if self.sharing.is_cut else 0

    @property
    def part(self) -> int:
        """The fp32 gradients that a rank holds of the group between micro-batches."""
        if self.sharing.is_cut:
            return self.shard * FP32_BYTES
        return self._filled_up // self.sharing.layout.ranks if self.sharing.sums_parts else self.elements * FP32_BYTES

    @property
    def _filled_up(self) -> int:
        """The fp32 gradients of whole parts, where the whole model is on each rank."""
        ranks = self.sharing.layout.ranks
        return -(-self.elements // ranks) * ranks * FP32_BYTES

    def added(self, accumulating: bool) -> int:
        """What the group's backward leaves behind. accumulating: gradients of earlier micro-batches are there."""
        layout = self.sharing.layout
        if not accumulating:
            return self.part
        # FSDP2 holds what it has reduced over groups that share until the end of backward.
        native = self.sharing.is_cut and layout.replicas > 1 and self.sharing.reduction == "native"
        return self.part if native else 0

    def gather(self, allocator: SimulatedAllocator) -> None:
        """What the weights arrive in."""
        allocator.brief(self.gathered + self.sent)
        allocator.hold(self.gathered)

    def copy_out(self, allocator: SimulatedAllocator) -> None:
        """The whole weights in place of what they arrived in."""
        allocator.brief(self.gathered)

    def reduce(self, allocator: SimulatedAllocator, accumulating: bool, before: int) -> None:
        """All gradients, in the compute dtype, leave; `added` stays, and where the model is cut `reduced`.

        before: what the group that was reduced before left for this one to free.
        """
        if self.sharing.is_cut:
            self._reduce_shards(allocator, accumulating, before)
        else:
            self._reduce_whole(allocator, accumulating)

    def _reduce_shards(self, allocator: SimulatedAllocator, accumulating: bool, before: int) -> None:
        allocator.release(self.gathered + before)
        allocator.hold(self.reduced)
        allocator.release((self.elements - self.last_elements) * self.element_bytes)  # a loop's variable holds the last
        shard, layout = self.shard * FP32_BYTES, self.sharing.layout
        size = -(-self.shard // layout.replicas) * FP32_BYTES
        if self.sharing.reduction == "ordered":
            received = size * layout.ranks
            filled_up = received if size * layout.replicas != shard else 0
            in_order = received if layout.replicas > 1 else 0
            allocator.brief(shard + (size if accumulating else 0) + filled_up + in_order + received)
            allocator.brief(shard + size + received)
            allocator.brief(shard + size + (size * layout.replicas if layout.replicas > 1 else 0))
        else:
            allocator.brief(shard + self.reduced)  # gloo's copy
        allocator.brief(shard)
        allocator.release(self.last_elements * self.element_bytes)
        allocator.hold(self.added(accumulating))

    def _reduce_whole(self, allocator: SimulatedAllocator, accumulating: bool) -> None:
        flat, received = self.elements * FP32_BYTES, self._filled_up
        allocator.brief((flat if self.element_bytes < FP32_BYTES else 0) + flat)
        allocator.hold(flat - self.elements * self.element_bytes)
        allocator.brief((received if received != flat else 0) + received)
        allocator.brief(received + self.added(accumulating))
        allocator.release(flat)
        allocator.hold(self.added(accumulating))


class EndOfStep(NamedTuple):
    """Bytes beside whole gradients at the end of a step. filling: of what they lie in, from then on. exchange: the most
    while ranks that each hold the whole model bring them together.
    """

    filling: int
    exchange: int

    @classmethod
    def of(cls, groups: Iterable[ParameterGroup]) -> Self:
        """groups: in the order in which they are brought together."""
        in_order = list(groups)
        sharing = in_order[-1].sharing
        if sharing.is_cut or sharing.layout.ranks == 1:
            return cls(0, 0)
        if not sharing.sums_parts:
            return cls(0, max(group.elements for group in in_order) * FP32_BYTES)
        filling = sum(group.part * sharing.layout.ranks - group.elements * FP32_BYTES for group in in_order)
        return cls(filling, in_order[-1].part)
