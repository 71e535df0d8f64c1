"""AdamW over fp32 weights, with fp32 master weights and gradient accumulation where the model computes in 16 bit.

Bytes a parameter: fp32 16 (weight, gradient, two moments); 16 bit 18 (2 weight, 4 master, 4 gradient, 8 moments): a
hook adds each 16-bit gradient into the fp32 one as soon as it is there and frees it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megaselect.compatibility import copy_all
from megaselect.distributed.distribution import Distribution, local_rows
from megaselect.distributed.layout import Layout
from megaselect.distributed.pieces import Piece
from megaselect.training.adamw import ShardIndependentAdamW
from megaselect.training.gradient_norm import gradient_norm, rows_of

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
    """Owns the fp32 weights, the moments and, for fp16, the loss scale. Names are those of the model's parameters.

    Of a model that is cut over ranks it has this rank's rows. No bit depends on how it is cut.
    """

    def __init__(self, model: nn.Module, settings: TrainingConfig, spread: Distribution | None = None) -> None:
        self._clip, self._spread = settings.clip_grad, spread or Distribution()
        self._weights = dict(model.named_parameters())
        first = next(iter(self._weights.values()))
        self.dtype = self._spread.dtype or first.dtype
        self._are_copies = first.dtype != torch.float32
        self.masters = {name: _master_of(weight) for name, weight in self._weights.items()}
        self._total_rows = sum(rows_of(weight.shape) for weight in self._weights.values())
        self._gradients = self._spread.make_gradients(self._weights, self.masters)
        decayed = [master for master in self.masters.values() if master.dim() >= 2]
        plain = [master for master in self.masters.values() if master.dim() < 2]
        self._adam = ShardIndependentAdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
        )
        self._scaler = _scaler_for(first.device, self.dtype)
        self._is_updating = False

    @property
    def layout(self) -> Layout:
        """Of the ranks that train the model."""
        return self._spread.layout

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a micro-batch's share of the loss."""
        self._scaler.scale(loss).backward()

    def finish_gradients(self) -> Tensor:
        """Have the masters' gradients be those of the step, over all ranks and not scaled; their norm, fp32 scalar."""
        self._gradients.finish()
        self._scaler.unscale_(self._adam)
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        return gradient_norm(gradients, self._total_rows, self._spread.gather)

    def step(self, learning_rate: float, loss: Tensor | None = None) -> StepResult:
        """Clip, update the fp32 weights, round them into the model, and drop the gradients. Waits for the device.

        loss: the step's, a scalar on the device. Where it or a gradient is not finite no weight changes.
        """
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        norm = self.finish_gradients()
        masters = list(self.masters.values())
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(masters, self._clip, norm)
        watched = torch.stack([norm] if loss is None else [norm, loss.detach()])
        self._adam.found_inf = watched.isfinite().all().logical_not().float()  # read on the device
        self._is_updating = True
        self._adam.step()
        self._gradients.drop()
        grad_norm, *losses = watched.tolist()
        applied = math.isfinite(grad_norm) and all(map(math.isfinite, losses))
        if applied and self._are_copies:
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
        self._gradients.drop()
        scale = self._scaler.state_dict()
        device = next(iter(self._weights.values())).device
        self._scaler = _scaler_for(device, self.dtype)  # a new one: gradients count as scaled again
        self._scaler.load_state_dict(scale)

    def weight_pieces(self) -> dict[str, Piece]:
        """The model's weights; of a model that is cut, this rank's rows, in fp32 whatever it computes in."""
        return {name: self._piece(name, local_rows(weight).detach()) for name, weight in self._weights.items()}

    def pieces(self) -> dict[str, Piece]:
        """`tensors`, with where they lie in the whole ones."""
        return {
            name: self._piece(name.partition(".")[2], tensor) if tensor.dim() else Piece(tensor)
            for name, tensor in self.tensors().items()
        }

    def _piece(self, name: str, tensor: Tensor) -> Piece:
        """The rows of a tensor that is cut as the weight of that name is."""
        total = rows_of(self._weights[name].shape)
        if self.layout.shards == 1:
            return Piece(tensor)
        rows = self.layout.rows(total)
        assert len(rows) == len(tensor), "FSDP2 cuts otherwise than Layout says"
        return Piece(tensor, (rows.start, total))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides: moments, step counts and, in 16 bit, master weights."""
        has_masters = self.dtype != torch.float32
        state = {f"master.{name}": master.detach() for name, master in self.masters.items() if has_masters}
        for name, master in self.masters.items():
            state |= {f"{key}.{name}": value for key, value in self._adam.state[master].items()}
        return state

    def scalars(self) -> dict[str, float]:
        """The loss scale's state; empty but for fp16."""
        return self._scaler.state_dict()

    def load_scalars(self, state: dict[str, float]) -> None:
        """The inverse of `scalars`."""
        self._scaler.load_state_dict(state)


def _master_of(weight: Tensor) -> Tensor:
    if weight.dtype == torch.float32:
        return local_rows(weight)
    return weight.detach().float().requires_grad_()


def _scaler_for(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """It does nothing but for fp16."""
    return torch.amp.GradScaler(device.type, init_scale=INITIAL_LOSS_SCALE, enabled=dtype == torch.float16)
