"""How the training of one model is spread over ranks, as its optimizer and its checkpoints need to know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megaselect.distributed.gradients import Gradients
from megaselect.distributed.layout import Layout

MakeGradients = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Gradients]


def alone(tensor: Tensor) -> Tensor:
    """[1, ...]: what a rank that holds every row gathers of all rows."""
    return tensor.unsqueeze(0)


@dataclass(frozen=True)
class Distribution:
    """gather: a tensor of this rank -> [shards, ...], of the ranks that hold the other rows too. make_gradients: from
    weights and the tensors that hold their sums, by name. dtype: that the model computes in; None: that of the weights.
    """

    layout: Layout = field(default_factory=Layout)
    gather: Callable[[Tensor], Tensor] = alone
    make_gradients: MakeGradients = Gradients
    dtype: torch.dtype | None = None


def local_rows(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor: itself, or its rows of a distributed one, in the same memory."""
    return tensor.to_local().detach() if hasattr(tensor, "to_local") else tensor
