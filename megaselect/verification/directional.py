"""Gradients against central differences in fp64: for checkpoints that cannot be switched off.

The derivative of the loss L along a random direction v of the parameters is <gradient, v> by backward, and
(L(w + e v) - L(w - e v)) / 2e by differences. In fp64 with e = 1e-5 relative to the parameters, the difference is off
by about e² of the loss's third derivative and 1e-16 / e of the loss: both about 1e-10. A ReLU whose input changes sign
within e adds up to about 1e-5 in a small layer, hence the tolerance. Where the differences with e and 2e do not agree,
the loss is not smooth in fp64 (a module that casts to fp32 inside), and nothing is said.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.trees import map_tensors
from megaselect.verification.module_run import LossFunction, call, loss_of
from megaselect.verification.module_state import Snapshot
from megaselect.verification.report import Check, Outcome, check

NAME = "fp64 differences"
STEP = 1e-5
TOLERANCE = 1e-5  # of the derivative's size
SMOOTH = 1e-4  # what differences with two steps may differ by
ROUNDING = 1e-14  # of the loss, relative
SMALLEST_SCALE = 1e-2  # of a parameter, where it is all zeros: a bias
MOST_PARAMETERS = 256  # to look for the culprit among: two forward passes each

Direction = dict[str, Tensor]


def check_directions(model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot) -> Check:
    """Along one direction of all parameters, and where that is wrong, along one of each."""
    try:
        trial = _Trial(copy.deepcopy(model).double(), map_tensors(_double, batch), loss_fn, start)
        whole = trial.derivatives(trial.directions)
        if not whole.smooth:
            return Check(NAME, Outcome.NOT_CHECKED, "the loss is not smooth enough in fp64 to take differences")
        if whole.right:
            return Check(NAME, Outcome.PASSED, f"along a random direction {whole.as_text()}")
        return check(NAME, [*trial.culprits(), f"along a direction of all parameters {whole.as_text()}"])
    except Exception as error:  # somebody's module in a dtype that it may not know
        reason = str(error).strip().partition("\n")[0]
        return Check(NAME, Outcome.NOT_CHECKED, f"the model does not run in fp64: {type(error).__name__}: {reason}")


def _double(leaf: Tensor) -> Tensor:
    doubled = leaf.detach().clone()
    doubled = doubled.double() if doubled.is_floating_point() else doubled
    return doubled.requires_grad_(leaf.requires_grad)


@dataclass(frozen=True)
class _Derivatives:
    """Along one direction: by backward, by differences with two steps.

    size: what they can be expected to be about. noise: what rounding of the loss makes of a zero.
    """

    backward: float
    differences: float
    wider: float
    size: float
    noise: float

    @property
    def smooth(self) -> bool:
        return abs(self.differences - self.wider) <= SMOOTH * self._size() + self.noise

    @property
    def right(self) -> bool:
        error = abs(self.backward - self.differences)
        return error <= TOLERANCE * self._size() + 10 * abs(self.differences - self.wider) + self.noise

    def _size(self) -> float:
        return max(abs(self.backward), abs(self.differences), self.size)

    def as_text(self) -> str:
        return f"the derivative is {self.backward:.6g} by backward and {self.differences:.6g} by differences"


class _Trial:
    """The model in fp64, with its gradients by its own backward and a random direction for each parameter."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot) -> None:
        self.model, self.batch, self.loss_fn = model, batch, loss_fn
        self.random_states, self.buffers = start, {name: value.clone() for name, value in model.named_buffers()}
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        model.zero_grad(set_to_none=True)
        loss = self._loss()
        self.loss = float(loss.detach())
        if loss.requires_grad:
            loss.backward()
        self.gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad
            for name, value in self.parameters.items()
        }
        generator = torch.Generator().manual_seed(0)
        self.directions = {name: _direction(value, generator) for name, value in self.parameters.items()}

    def derivatives(self, direction: Direction) -> _Derivatives:
        """Along `direction`, which names some of the parameters."""
        terms = [self.gradients[name] * towards for name, towards in direction.items()]
        return _Derivatives(
            backward=sum(float(term.sum()) for term in terms),
            differences=self._difference(direction, STEP),
            wider=self._difference(direction, 2 * STEP),
            size=sum(float(term.square().sum()) for term in terms) ** 0.5,
            noise=ROUNDING * abs(self.loss) / STEP,
        )

    def culprits(self) -> Iterator[str]:
        """A sentence for each parameter whose own derivative is wrong."""
        for name in list(self.parameters)[:MOST_PARAMETERS]:
            found = self.derivatives({name: self.directions[name]})
            if not found.right:
                yield f"{name}: {found.as_text()}"

    def _difference(self, direction: Direction, step: float) -> float:
        ahead, behind = (self._loss_at(direction, sign * step) for sign in (1, -1))
        return (ahead - behind) / (2 * step)

    def _loss_at(self, direction: Direction, step: float) -> float:
        before = {name: self.parameters[name].detach().clone() for name in direction}
        with torch.no_grad():
            for name, towards in direction.items():
                self.parameters[name].add_(towards, alpha=step)
        loss = float(self._loss().detach())
        with torch.no_grad():
            for name, value in before.items():
                self.parameters[name].copy_(value)
        return loss

    def _loss(self) -> Tensor:
        """With gradients on, as in training: some modules look at it. From the same random and running state each."""
        self.random_states.put_back_random_states()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        return loss_of(call(self.model, self.batch), self.loss_fn)


def _direction(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random, each element about as large as the parameter's."""
    scale = max(float(parameter.detach().square().mean().sqrt()), SMALLEST_SCALE)
    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return drawn.to(parameter.device) * scale
