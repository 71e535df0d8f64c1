"""A model on the ranks of a layout: cut or whole, with its gradients summed up over them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from megaselect.devices import Placement
from megaselect.distributed.collectives import all_gather
from megaselect.distributed.distribution import Distribution, MakeGradients
from megaselect.distributed.gradients import Gradients, NativeGradients, OrderedGradients
from megaselect.distributed.layout import Layout
from megaselect.distributed.ordered import OrderedSum
from megaselect.distributed.sharded import ShardedGradients, shard_model, sum_in_order

REPLICATE, SHARD = "replicate", "shard"


def distribute(
    model: nn.Module, blocks: Sequence[nn.Module], layout: Layout, reduction: str, placement: Placement
) -> Distribution:
    """Bring a model onto the ranks of the default process group. Its weights are the same on each.

    blocks: the parts that run one after the other, whose parameters are gathered and reduced together. A model that is
    to be cut has fp32 weights, whatever it is to compute in, on any device: they are moved part by part.
    """
    if layout.ranks == 1:
        return Distribution()
    mesh = init_device_mesh(placement.device.type, (layout.replicas, layout.shards), mesh_dim_names=(REPLICATE, SHARD))
    summation = OrderedSum(layout, mesh[REPLICATE].get_group() if layout.replicas > 1 else None)
    if layout.shards == 1:
        return Distribution(layout, make_gradients=_reduced(_names(model, blocks), reduction, summation))
    shared = mesh[SHARD] if reduction == "ordered" or layout.replicas == 1 else mesh
    shard_model(model, blocks, shared, layout.sharding, placement.dtype)
    if reduction == "ordered":
        sum_in_order(model, summation)
    gather = functools.partial(all_gather, group=mesh[SHARD].get_group())
    return Distribution(layout, gather, ShardedGradients, placement.dtype)


def _names(model: nn.Module, blocks: Sequence[nn.Module]) -> list[list[str]]:
    """Of the parameters of each block, and of the rest."""
    group_of = {parameter: number for number, block in enumerate(blocks) for parameter in block.parameters()}
    groups: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name, parameter in model.named_parameters():
        groups[group_of.get(parameter, -1)].append(name)
    return groups


def _reduced(groups: list[list[str]], reduction: str, summation: OrderedSum) -> MakeGradients:
    def make(weights: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> Gradients:
        if reduction == "native":
            return NativeGradients(weights, sums, groups)
        return OrderedGradients(weights, sums, groups, summation)

    return make
