"""AdamW whose result for an element does not depend on the element's place in its tensor, and so not on the shard.

torch's fused kernel for CPUs computes as many elements as fill its vector registers in one way, and the rest of a
tensor in another, whose last bit may differ (seen with torch 2.11 to 2.15). Here the rests of all tensors are computed
together, filled up to whole registers. The kernels for GPUs treat all elements alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw

REGISTER_ELEMENTS = 16  # of 32 bits: AVX-512's, and a multiple of all narrower ones


class _Row(NamedTuple):
    """What the kernel reads and writes of one tensor, all of one shape."""

    weight: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor


class ShardIndependentAdamW(torch.optim.AdamW):
    """torch.optim.AdamW(fused=True) over contiguous fp32 tensors, step by step the same but for the rests above.

    found_inf: fp32 scalar on the device; where it is 1 a step leaves everything as it was.
    """

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self.found_inf: Tensor | None = None
        for group in self.param_groups:
            for weight in group["params"]:
                self.state[weight] = _no_moments(weight)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure would be a step of its own
        """Update every weight that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            filled = [weight for weight in weights if weight.numel()]
            if filled:
                self._update(group, filled)
            for weight in weights:
                if not weight.numel():
                    self._count_step(weight)

    def _count_step(self, weight: Tensor) -> None:
        """Of a weight of which this rank holds no row: its count is that of the ranks which hold some."""
        self.state[weight]["step"] += 1 if self.found_inf is None else 1 - self.found_inf

    def _update(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        rows = [self._row(weight) for weight in weights]
        steps = [self.state[weight]["step"] for weight in weights]
        if weights[0].device.type == "cpu":
            self._update_rests(group, rows, steps)
            rows = [_Row(*(_in_registers(tensor)[0] for tensor in row)) for row in rows]
        self._run(group, rows, steps)

    def _update_rests(self, group: dict[str, Any], rows: list[_Row], steps: list[Tensor]) -> None:
        """What does not fill a register, of all tensors that have done as many steps together."""
        together: dict[float, list[_Row]] = {}
        for row, step in zip(rows, steps, strict=True):
            if row.weight.numel() % REGISTER_ELEMENTS:
                rest = _Row(*(_in_registers(tensor)[1] for tensor in row))
                together.setdefault(step.item(), []).append(rest)
        for done, rests in together.items():
            joined = _Row(*(_filled_up(list(tensors)) for tensors in zip(*rests, strict=True)))
            self._run(group, [joined], [torch.tensor(done)])
            for number, tensors in enumerate(zip(*rests, strict=True)):
                _put_back(joined[number], tensors)

    def _row(self, weight: Tensor) -> _Row:
        state, gradient = self.state[weight], weight.grad
        assert gradient is not None
        return _Row(weight, gradient, state["exp_avg"], state["exp_avg_sq"])

    def _run(self, group: dict[str, Any], rows: list[_Row], steps: list[Tensor]) -> None:
        """torch's kernel over rows and their step counts."""
        weights, gradients, first, second = (list(tensors) for tensors in zip(*rows, strict=True))
        adamw(
            *(weights, gradients, first, second, [], steps),
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _in_registers(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Flat views: what fills whole registers, and the rest."""
    flat = tensor.view(-1)
    whole = len(flat) // REGISTER_ELEMENTS * REGISTER_ELEMENTS
    return flat[:whole], flat[whole:]


def _filled_up(rests: list[Tensor]) -> Tensor:
    """One after the other, then zeros."""
    joined = torch.cat(rests)
    return torch.cat([joined, joined.new_zeros(-len(joined) % REGISTER_ELEMENTS)])


def _put_back(joined: Tensor, rests: Sequence[Tensor]) -> None:
    done = 0
    for rest in rests:
        rest.copy_(joined[done : done + len(rest)])
        done += len(rest)


def _no_moments(weight: Tensor) -> dict[str, Tensor]:
    """AdamW's state before the first step. It would make it in that step, where a part of the weights may have changed
    by the time that memory runs out.
    """
    step = torch.zeros((), dtype=torch.float32, device=weight.device)
    return {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
