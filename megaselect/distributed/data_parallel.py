"""A model on the ranks of a layout: cut or whole, with its gradients summed up over them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from megaselect.devices import Placement
from megaselect.distributed import meshes
from megaselect.distributed.collectives import all_gather
from megaselect.distributed.distribution import Distribution, MakeGradients
from megaselect.distributed.gradients import Gradients, NativeGradients, OrderedGradients
from megaselect.distributed.layout import Layout
from megaselect.distributed.ordered import OrderedSum
from megaselect.distributed.sharded import ShardedGradients, shard_model, sum_in_order
from megaselect.units import parse_duration

if TYPE_CHECKING:
    from megaselect.config import ParallelConfig

REPLICATE, SHARD = "replicate", "shard"


def distribute(
    model: nn.Module, blocks: Sequence[nn.Module], layout: Layout, parallel: ParallelConfig, placement: Placement
) -> Distribution:
    """Bring a model onto the ranks of the default process group, two at least. Its weights are the same on each.

    blocks: the parts that run one after the other, whose parameters are gathered and reduced together. A model that is
    to be cut has fp32 weights, whatever it is to compute in, on any device: they are moved part by part.
    """
    replicas, shards = _groups(layout, parse_duration(parallel.timeout, "--parallel.timeout"))
    summation = OrderedSum(layout, replicas if layout.replicas > 1 else None)
    is_ordered = parallel.reduction == "ordered"
    if layout.shards == 1:
        return Distribution(layout, make_gradients=_reduced(_names(model, blocks), is_ordered, summation))
    mesh = _mesh(layout, replicas, shards, placement.device.type)
    sums_replicas = layout.replicas > 1 and not is_ordered  # by FSDP2; else by OrderedSum, with all ranks
    shard_model(model, blocks, mesh if sums_replicas else mesh[SHARD], layout.sharding, placement.dtype)
    reductions = sum_in_order(model, summation) if is_ordered else []
    gather = functools.partial(all_gather, group=shards)
    return Distribution(layout, gather, functools.partial(ShardedGradients, reductions=reductions), placement.dtype)


def _groups(layout: Layout, seconds: float) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
    """This rank's: of the ranks that hold the same rows, and of those that hold a model together.

    Made here, with the time-out: groups that torch makes itself, as for a mesh, have its default of half an hour,
    whatever the default group has (torch 2.11 to 2.15).
    """
    number = torch.arange(layout.ranks).view(layout.replicas, layout.shards)
    own: list[Any] = []
    for groups in (number.t().tolist(), number.tolist()):
        for ranks in groups:  # every rank makes every group
            group = dist.new_group(ranks, timeout=timedelta(seconds=seconds))
            if layout.rank in ranks:
                own.append(group)
    return own[0], own[1]


def _mesh(layout: Layout, replicas: dist.ProcessGroup, shards: dist.ProcessGroup, device: str) -> DeviceMesh:
    number = torch.arange(layout.ranks).view(layout.replicas, layout.shards)
    mesh = DeviceMesh.from_group([replicas, shards], device, mesh=number, mesh_dim_names=(REPLICATE, SHARD))
    meshes.remember(mesh)
    return mesh


def _names(model: nn.Module, blocks: Sequence[nn.Module]) -> list[list[str]]:
    """Of the parameters of each block, and of the rest."""
    group_of = {parameter: number for number, block in enumerate(blocks) for parameter in block.parameters()}
    groups: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name, parameter in model.named_parameters():
        groups[group_of.get(parameter, -1)].append(name)
    return groups


def _reduced(groups: list[list[str]], is_ordered: bool, summation: OrderedSum) -> MakeGradients:
    def make(weights: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Gradients:
        if is_ordered:
            return OrderedGradients(weights, sums, groups, summation)
        return NativeGradients(weights, sums, groups)

    return make
