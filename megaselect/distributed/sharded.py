"""A model cut over ranks by PyTorch's FSDP2, each block and the rest a group, with sums of gradients in order.

FSDP2's own reduce-scatter divides and adds in an order that depends on the number of ranks; here it is replaced, by
FSDP2's own means, by OrderedSum. FSDP2 would add a round's sum to that of the rounds before; so what is handed back is
the sum of all rounds, and the one before is taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from megaselect.distributed.distribution import local_rows
from megaselect.distributed.gradients import Gradients
from megaselect.distributed.ordered import OrderedSum


def shard_model(
    model: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, sharding: str, dtype: torch.dtype
) -> None:
    """Cut the blocks and the rest of the model over the mesh. Weights are fp32; the model computes in dtype."""
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    _cast_buffers(model, dtype)
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=sharding == "parameters", mp_policy=policy)
    # Backward begins with the rest, the head: to let go of it in between would be to gather it twice in a row.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)  # the loss is divided already
        part.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply before it adds


def sum_in_order(model: nn.Module, summation: OrderedSum) -> list[OrderedReduceScatter]:
    """Have a model that shard_model has cut sum up gradients by `summation`; what does it, group by group."""
    reductions = []
    for part in _parts(model):
        reductions.append(OrderedReduceScatter(_own_parameters(part), summation))
        part.set_custom_reduce_scatter(reductions[-1])
    return reductions


class ShardedGradients(Gradients):
    """Of a model that is cut: FSDP2 leaves the sums on the parameters. reductions: those of sum_in_order."""

    def __init__(
        self, weights: Mapping[str, Tensor], sums: Mapping[str, Tensor], reductions: Sequence[OrderedReduceScatter] = ()
    ) -> None:
        self.weights, self.sums, self._reductions = weights, sums, reductions

    def finish(self) -> None:
        """See Gradients.finish."""
        for name, weight in self.weights.items():
            if weight.grad is not None:
                self.sums[name].grad = local_rows(weight.grad)

    def drop(self) -> None:
        """See Gradients.drop."""
        super().drop()
        for reduction in self._reductions:
            reduction.drop()


def _cast_buffers(model: nn.Module, dtype: torch.dtype) -> None:
    """FSDP2 casts parameters and leaves buffers as they are."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point():
                setattr(module, name, buffer.to(dtype))


def _parts(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 has made groups of."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _own_parameters(part: nn.Module) -> list[nn.Parameter]:
    """Those of the part's group: not of the parts inside it."""
    inside = [module for module in part.modules() if isinstance(module, FSDPModule) and module is not part]
    theirs = {parameter for module in inside for parameter in module.parameters()}
    return [parameter for parameter in part.parameters() if parameter not in theirs]


class OrderedReduceScatter:
    """What FSDP2 calls in place of its reduce-scatter, once a round for each group."""

    def __init__(self, parameters: list[nn.Parameter], summation: OrderedSum) -> None:
        self._parameters, self._summation = parameters, summation
        self._total: Tensor | None = None  # what was handed back last: the parameters' gradients are views of it

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what is sent and for what is handed back."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp,
        async_op: bool = False,
    ) -> None:
        """output_tensor: this rank's rows of the sum, flat. input_tensor: the gradient, shard after shard."""
        before = self._total if any(parameter.grad is not None for parameter in self._parameters) else None
        part = self._summation.add(input_tensor, None if before is None else self._summation.part_of(before))
        output_tensor.copy_(self._summation.gathered(part, len(output_tensor)))
        self._total = output_tensor
        for parameter in self._parameters:
            parameter.grad = None

    def drop(self) -> None:
        """Let go of the sum, which nobody else holds once the gradients are dropped."""
        self._total = None
