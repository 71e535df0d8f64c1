"""The collectives that are used here, over contiguous tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def all_gather(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[ranks, ...]: the tensor of each rank of the group; None: of all."""
    flat = tensor.contiguous().view(-1)
    gathered = flat.new_empty(dist.get_world_size(group) * flat.numel())
    # torch 2.13 renames it and warns of the old name; 2.11 has that alone.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(gathered, flat, group=group)
    return gathered.view(-1, *tensor.shape)


def all_to_all(tensor: Tensor) -> Tensor:
    """What each rank has for this one, in the shape of what this one has for each, rank after rank in memory."""
    flat = tensor.contiguous().view(-1)  # torch 2.15 divides the first dimension, whatever else there is
    received = torch.empty_like(flat)
    dist.all_to_all_single(received, flat)
    return received.view(tensor.shape)
