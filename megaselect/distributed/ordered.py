"""Sums of gradients over ranks in the order of the micro-batches: the bits of one process that takes them all.

One process adds each micro-batch's gradient to the sum of those before it. Here rank r has micro-batch r of a round:
each rank is sent its part of every rank's gradient (all-to-all) and adds them to its part of the sum, rank by rank.
That sends as many bytes as a ring's reduce-scatter, which adds in another order for each part; the parts of a round
are held until they are added, a buffer of a gradient's size. Where groups of ranks hold a whole model each, the parts
are as small as if there were one group, and are gathered over the groups afterwards: the bytes of a ring's
reduce-scatter and all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from megaselect.distributed.collectives import all_gather, all_to_all

if TYPE_CHECKING:
    from megaselect.distributed.layout import Layout


@dataclass(frozen=True)
class OrderedSum:
    """Over all ranks of a layout. replicas: the ranks that hold the same rows as this one; None where it is alone."""

    layout: Layout
    replicas: dist.ProcessGroup | None

    def part_size(self, shard_size: int) -> int:
        """Elements of a shard of so many that this rank sums up, filled up."""
        return -(-shard_size // self.layout.replicas)

    def add(self, gradient: Tensor, part: Tensor | None) -> Tensor:
        """This rank's part of the sum: `part`, written over, plus every rank's gradient. None: of nothing before.

        gradient: flat, shard after shard, all of one size.
        """
        received = self._exchanged(gradient)
        total = received[0].clone() if part is None else part.add_(received[0])
        for each in received[1:]:
            total += each
        return total

    def gathered(self, part: Tensor, shard_size: int) -> Tensor:
        """The shard that the parts of all groups make up."""
        if self.replicas is None:
            return part
        return all_gather(part, self.replicas).view(-1)[:shard_size]

    def part_of(self, shard: Tensor) -> Tensor:
        """The inverse of `gathered`: a copy of this rank's part, filled up."""
        size = self.part_size(len(shard))
        part = shard[self.layout.replica * size :][:size]
        return torch.cat([part, part.new_zeros(size - len(part))])

    def _exchanged(self, gradient: Tensor) -> Tensor:
        """[ranks, part]: this rank's part of each rank's gradient."""
        layout = self.layout
        by_shard = gradient.view(layout.shards, -1)
        size = self.part_size(by_shard.shape[1])
        filling = layout.replicas * size - by_shard.shape[1]
        if filling:
            by_shard = torch.cat([by_shard, by_shard.new_zeros(layout.shards, filling)], 1)
        of_ranks = by_shard.view(layout.shards, layout.replicas, size).transpose(0, 1)  # in the order of ranks
        return all_to_all(of_ranks).view(layout.ranks, size)
