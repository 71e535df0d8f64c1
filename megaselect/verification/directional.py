"""Gradients against central differences: for what cannot be switched off, checkpoints and compilers.

The derivative of the loss L along a random direction v of the parameters is <gradient, v> by backward, and
(L(w + e v) - L(w - e v)) / 2e by differences. In fp64 with e = 1e-5 relative to the parameters, the difference is off
by about e² of the loss's third derivative and 1e-16 / e of the loss: both about 1e-10. A ReLU whose input changes sign
within e adds up to about 1e-5 in a small layer, hence the tolerance. A module that casts to fp32 inside rounds the loss
to 1e-7 of itself: there the step is 300 times as long and the tolerance 1e-3, far below what a wrong mask does. Where
the differences with e and 2e do not agree even so, the loss is not smooth, and nothing is said.

The model itself is taken to fp64 and back, not a copy: a copy loses what compiled it and what its closures hold. What
is compiled stays in fp32, or is taken to it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.batches import LossFunction, loss_of
from megaselect.trees import map_tensors
from megaselect.verification.module_run import call
from megaselect.verification.module_state import Snapshot
from megaselect.verification.report import Check, Outcome, check

NAME = "differences"
SMALLEST_SCALE = 1e-2  # of a parameter, where it is all zeros: a bias
MAX_PARAMETERS = 256  # to look for the culprit among: two forward passes each

Direction = dict[str, Tensor]


@dataclass(frozen=True)
class Precision:
    """step: relative to the parameters. tolerance: of the derivative's size; smooth: what two steps may differ by.

    rounding: of the loss, relative.
    """

    step: float
    tolerance: float
    smooth: float
    rounding: float


IN_FP64 = Precision(1e-5, 1e-5, 1e-4, 1e-14)
IN_FP32 = Precision(3e-3, 1e-3, 2e-2, 1e-6)


def check_directions(
    model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot, compiled: bool = False
) -> Check:
    """Along one direction of all parameters, and where that is wrong, along one of each.

    compiled: in fp32, since what a compiler runs again depends on the bytes that it saves.
    """
    dtype = torch.float32 if compiled else torch.float64
    try:
        with in_dtype(model, dtype):
            trial = _Trial(model, map_tensors(functools.partial(tensor_in_dtype, dtype), batch), loss_fn, start)
            for precision in (IN_FP32,) if compiled else (IN_FP64, IN_FP32):
                whole = trial.derivatives(trial.directions, precision)
                if whole.smooth:
                    break
            else:
                return Check(NAME, Outcome.NOT_CHECKED, "the loss is not smooth enough to take differences")
            if whole.right:
                return Check(NAME, Outcome.PASSED, f"along a random direction {whole.as_text()}")
            along_all = f"along a direction of all parameters {whole.as_text()}"
            return check(NAME, [*trial.culprits(precision), along_all])
    except Exception as error:  # somebody's module in a dtype that it may not know
        reason = str(error).strip().partition("\n")[0]
        detail = f"the model does not run in {str(dtype).removeprefix('torch.')}: {type(error).__name__}: {reason}"
        return Check(NAME, Outcome.NOT_CHECKED, detail)


@contextlib.contextmanager
def in_dtype(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Parameters and buffers have it inside, and are the same storages as before afterwards. Gradients are gone."""
    tensors = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    before = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
        yield
    finally:
        for tensor, data in zip(tensors, before, strict=True):
            tensor.grad = None
            tensor.data = data


def tensor_in_dtype(dtype: torch.dtype, leaf: Tensor) -> Tensor:
    """A copy of a batch's tensor, in `dtype` where it holds floating-point numbers."""
    changed = leaf.detach().clone()
    changed = changed.to(dtype) if changed.is_floating_point() else changed
    return changed.requires_grad_(leaf.requires_grad)


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
    precision: Precision

    @property
    def smooth(self) -> bool:
        return abs(self.differences - self.wider) <= self.precision.smooth * self._size() + self.noise

    @property
    def right(self) -> bool:
        error = abs(self.backward - self.differences)
        return error <= self.precision.tolerance * self._size() + 10 * abs(self.differences - self.wider) + self.noise

    def _size(self) -> float:
        return max(abs(self.backward), abs(self.differences), self.size)

    def as_text(self) -> str:
        return f"the derivative is {self.backward:.6g} by backward and {self.differences:.6g} by differences"


class _Trial:
    """The model in fp64, with its gradients by its own backward and a random direction for each parameter."""

    def __init__(self, model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot) -> None:
        self.model, self.batch, self.loss_fn = model, batch, loss_fn
        self.start, self.buffers = start, {name: value.clone() for name, value in model.named_buffers()}
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        model.zero_grad(set_to_none=True)
        loss = self._loss()
        self.loss = float(loss.detach())
        if loss.requires_grad:
            loss.backward()
        self.gradients = {
            name: torch.zeros_like(value) if value.grad is None else value.grad.to_dense()
            for name, value in self.parameters.items()
        }
        generator = torch.Generator().manual_seed(0)
        self.directions = {name: _direction(value, generator) for name, value in self.parameters.items()}

    def derivatives(self, direction: Direction, precision: Precision) -> _Derivatives:
        """Along `direction`, which names some of the parameters."""
        terms = [self.gradients[name] * towards for name, towards in direction.items()]
        return _Derivatives(
            backward=sum(float(term.sum()) for term in terms),
            differences=self._difference(direction, precision.step),
            wider=self._difference(direction, 2 * precision.step),
            size=sum(float(term.square().sum()) for term in terms) ** 0.5,
            noise=precision.rounding * abs(self.loss) / precision.step,
            precision=precision,
        )

    def culprits(self, precision: Precision) -> Iterator[str]:
        """A sentence for each parameter whose own derivative is wrong."""
        for name in list(self.parameters)[:MAX_PARAMETERS]:
            found = self.derivatives({name: self.directions[name]}, precision)
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
        self.start.attributes.put_back()
        self.start.put_back_random_states()
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(self.buffers[name])
        return loss_of(call(self.model, self.batch), self.loss_fn)


def _direction(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Random, each element about as large as the parameter's."""
    scale = max(float(parameter.detach().square().mean().sqrt()), SMALLEST_SCALE)
    drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return drawn.to(parameter.device) * scale
