"""AdamW over fp32 weights, with fp32 master weights and gradient accumulation where the model computes in 16 bit.

Bytes a parameter: fp32 16 (weight, gradient, two moments); 16 bit 18 (2 weight, 4 master, 4 gradient, 8 moments): a
hook adds each 16-bit gradient into the fp32 one as soon as it is there and frees it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megaselect.compatibility import copy_all

if TYPE_CHECKING:
    from megaselect.config import TrainingConfig


INITIAL_LOSS_SCALE = 2.0**15
# A gradient that overflows fp16 even so is above 6.7e7, which no scale can mend, while all those below 6e-5 become 0.
MIN_LOSS_SCALE = 2.0**-10


@dataclass(frozen=True)
class StepResult:
    """grad_norm: before clipping. skipped: weights, moments and step counts are as they were.

    nonfinite: skipped, and not for fp16 gradients that overflowed and had the loss scale halved: nothing has changed.
    """

    grad_norm: float
    skipped: bool
    nonfinite: bool


class MixedPrecisionAdamW:
    """Owns the fp32 weights, the moments and, for fp16, the loss scale. Names are those of the model's parameters."""

    def __init__(self, model: nn.Module, settings: TrainingConfig) -> None:
        self._clip = settings.clip_grad
        self._weights = dict(model.named_parameters())
        first = next(iter(self._weights.values()))
        self._has_masters = first.dtype != torch.float32
        self.masters = {name: _master_of(weight) for name, weight in self._weights.items()}
        decayed = [master for master in self.masters.values() if master.dim() >= 2]
        plain = [master for master in self.masters.values() if master.dim() < 2]
        self._adam = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )
        for master in self.masters.values():
            self._adam.state[master] = _no_moments(master)
        self._scaler = _scaler_for(first)
        self._is_updating = False
        if self._has_masters:
            for name, weight in self._weights.items():
                weight.register_post_accumulate_grad_hook(_accumulate_into(self.masters[name]))

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a micro-batch's share of the loss."""
        self._scaler.scale(loss).backward()

    def step(self, learning_rate: float, loss: Tensor | None = None) -> StepResult:
        """Clip, update the fp32 weights, round them into the model, and drop the gradients. Waits for the device.

        loss: the step's, a scalar on the device. Where it or a gradient is not finite no weight changes.
        """
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._scaler.unscale_(self._adam)
        masters = list(self.masters.values())
        norm = torch.nn.utils.get_total_norm([master.grad for master in masters if master.grad is not None])
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(masters, self._clip, norm)
        watched = torch.stack([norm] if loss is None else [norm, loss.detach()])
        # The fused update reads it on the device, and where it is 1 leaves everything as it was.
        found_inf = watched.isfinite().all().logical_not().float()
        self._adam.found_inf = found_inf  # type: ignore[attr-defined]  # torch's GradScaler adds it in the same way
        self._is_updating = True
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        grad_norm, *losses = watched.tolist()
        applied = math.isfinite(grad_norm) and all(map(math.isfinite, losses))
        if applied and self._has_masters:
            with torch.no_grad():
                copy_all(list(self._weights.values()), masters)
        overflowed = not applied and all(map(math.isfinite, losses)) and self._can_halve_loss_scale()
        # Given a scale, update takes it and forgets the overflow.
        self._scaler.update(None if applied or overflowed else self._scaler.get_scale())
        self._is_updating = False
        return StepResult(grad_norm, skipped=not applied, nonfinite=not applied and not overflowed)

    def _can_halve_loss_scale(self) -> bool:
        return self._scaler.is_enabled() and self._scaler.get_scale() / 2 >= MIN_LOSS_SCALE

    @property
    def is_whole(self) -> bool:
        """Whether the weights are those of a whole number of steps. No: a step raised while it changed them."""
        return not self._is_updating

    def abandon_step(self) -> None:
        """Let go of what a step that raised has gathered, so that it can be taken again, if the weights are whole."""
        for holder in (*self._weights.values(), *self.masters.values()):
            holder.grad = None
        scale = self._scaler.state_dict()
        self._scaler = _scaler_for(next(iter(self._weights.values())))  # a new one: gradients count as scaled again
        self._scaler.load_state_dict(scale)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the model: moments, step counts and, in 16 bit, master weights."""
        state = {f"master.{name}": master.detach() for name, master in self.masters.items() if self._has_masters}
        for name, master in self.masters.items():
            state |= {f"{key}.{name}": value for key, value in self._adam.state[master].items()}
        return state

    def load_tensors(self, state: dict[str, Tensor]) -> None:
        """The inverse of `tensors`; the model's weights must have been loaded before."""
        for name, master in self.masters.items():
            with torch.no_grad():
                master.copy_(state[f"master.{name}"] if self._has_masters else self._weights[name])
            self._adam.state[master] = {
                key: state[f"{key}.{name}"].to(master.device) for key in ("step", "exp_avg", "exp_avg_sq")
            }

    def scalars(self) -> dict[str, float]:
        """The loss scale's state; empty but for fp16."""
        return self._scaler.state_dict()

    def load_scalars(self, state: dict[str, float]) -> None:
        """The inverse of `scalars`."""
        self._scaler.load_state_dict(state)


def _master_of(weight: Tensor) -> Tensor:
    if weight.dtype == torch.float32:
        return weight
    return weight.detach().float().requires_grad_()


def _no_moments(master: Tensor) -> dict[str, Tensor]:
    """AdamW's state before the first step. It would make it in that step, where a part of the weights may have changed
    by the time that memory runs out.
    """
    step = torch.zeros((), dtype=torch.float32, device=master.device)
    return {"step": step, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}


def _scaler_for(weight: Tensor) -> torch.amp.GradScaler:
    """It does nothing but for fp16."""
    is_fp16 = weight.dtype == torch.float16
    return torch.amp.GradScaler(weight.device.type, init_scale=INITIAL_LOSS_SCALE, enabled=is_fp16)


def _accumulate_into(master: Tensor) -> Callable[[Tensor], None]:
    def accumulate(weight: Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None  # the hook runs because it is there
        weight.grad = None
        master.grad = gradient.float() if master.grad is None else master.grad.add_(gradient)

    return accumulate
