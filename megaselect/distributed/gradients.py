"""Where the gradients of a step's micro-batches add up: in fp32, of this rank's rows of each parameter.

Where a model is cut, FSDP2 leaves them on its own parameters (megaselect/distributed/sharded.py). Elsewhere each
gradient is taken off its weight as soon as it is there, unless autograd's own sum is what is wanted: fp32 on one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megaselect.distributed.ordered import OrderedSum


class Gradients:
    """Of a rank that sums up by itself. weights, sums: name -> parameter, and fp32 tensor whose .grad is its sum.

    They are one and the same where the model computes in fp32.
    """

    def __init__(self, weights: Mapping[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        self.weights, self.sums = weights, sums
        for name, weight in weights.items():
            if sums[name] is not weight:
                weight.register_post_accumulate_grad_hook(_add_into(sums[name]))

    def finish(self) -> None:
        """After the last micro-batch of a step: have every sum be that of all ranks."""

    def drop(self) -> None:
        """Let go of what a step has gathered."""
        for holder in (*self.weights.values(), *self.sums.values()):
            holder.grad = None


def _add_into(total: Tensor) -> Callable[[Tensor], None]:
    def add(weight: Tensor) -> None:
        gradient = _taken(weight)
        total.grad = gradient.float() if total.grad is None else total.grad.add_(gradient)

    return add


def _taken(weight: Tensor) -> Tensor:
    gradient = weight.grad
    assert gradient is not None  # the hook runs because it is there
    weight.grad = None
    return gradient


class NativeGradients(Gradients):
    """Each rank sums up its own micro-batches; the ranks' sums are added at the end, by torch's all-reduce.

    groups: names of the parameters that are reduced together.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], sums: Mapping[str, Tensor], groups: Sequence[Sequence[str]]
    ) -> None:
        super().__init__(weights, sums)
        self._groups = groups

    def finish(self) -> None:
        """See Gradients.finish."""
        for names in self._groups:
            self._reduce(names)

    def _reduce(self, names: Sequence[str]) -> None:
        """What it allocates is gone when the next group's turn comes."""
        gradients = [gradient for name in names if (gradient := self.sums[name].grad) is not None]
        flat = torch.cat([gradient.view(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


class OrderedGradients(Gradients):
    """Every round of micro-batches is summed up in their order as soon as a group of parameters has its gradients.

    Between rounds a rank holds its part of the sums; `finish` gathers them.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        groups: Sequence[Sequence[str]],
        summation: OrderedSum,
    ) -> None:
        self.weights, self.sums = weights, sums
        self._groups = [_Group({name: weights[name] for name in names}, summation) for names in groups]

    def finish(self) -> None:
        """See Gradients.finish."""
        for group in self._groups:
            for name, gradient in group.gathered():
                self.sums[name].grad = gradient

    def drop(self) -> None:
        """See Gradients.drop."""
        super().drop()
        for group in self._groups:
            group.drop()


class _Group:
    """Parameters whose gradients travel together, and this rank's part of their sum."""

    def __init__(self, weights: Mapping[str, Tensor], summation: OrderedSum) -> None:
        # No weights: they hold their hooks, which hold this.
        self._shapes, self._summation = {name: weight.shape for name, weight in weights.items()}, summation
        self._arrived: dict[str, Tensor] = {}
        self._part: Tensor | None = None
        for name, weight in weights.items():
            weight.register_post_accumulate_grad_hook(self._arrive(name))

    def _arrive(self, name: str) -> Callable[[Tensor], None]:
        def arrive(weight: Tensor) -> None:
            self._arrived[name] = _taken(weight)
            if len(self._arrived) == len(self._shapes):
                flat = torch.cat([self._arrived[each].flatten().float() for each in self._shapes])
                self._arrived.clear()
                self._part = self._summation.add(flat, self._part)

        return arrive

    def gathered(self) -> list[tuple[str, Tensor]]:
        """(name, sum) of each parameter."""
        assert self._part is not None, "a parameter of the group has no gradient"
        sizes = [shape.numel() for shape in self._shapes.values()]
        whole = self._summation.gathered(self._part, sum(sizes))
        self._part = None
        pairs = zip(self._shapes.items(), whole.split(sizes), strict=True)
        return [(name, part.view(shape)) for (name, shape), part in pairs]

    def drop(self) -> None:
        """Let go of what a step has gathered."""
        self._arrived.clear()
        self._part = None
