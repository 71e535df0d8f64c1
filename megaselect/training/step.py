"""One optimizer step over the global batch: what `train` repeats and what `compare` times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megaselect.config import TrainingConfig
from megaselect.data.sampler import Batch, BatchSource
from megaselect.distributed.ranks import Ranks
from megaselect.models.gpt.model import GPT
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.schedule import learning_rate
from megaselect.training.state import RunState

Forward = Callable[[list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class StepOutcome:
    """loss: mean over the global batch. grad_norm: before clipping. skipped, nonfinite: as in StepResult."""

    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool
    nonfinite: bool


def _ignore(_: str) -> None:
    """Nobody wants to know the phases."""


class Stepper:
    """Takes the steps of one run. phase_done hears "data", "forward", "backward" (once a micro-batch), "optimizer".

    Of n ranks each takes every n-th micro-batch of a step, of which there must be a multiple of n.
    """

    def __init__(
        self,
        training: TrainingConfig,
        model: GPT,
        optimizer: MixedPrecisionAdamW,
        source: BatchSource,
        phase_done: Callable[[str], None] = _ignore,
        ranks: Ranks | None = None,
    ) -> None:
        self._training, self._model, self._optimizer, self._source = training, model, optimizer, source
        self.ranks = ranks or Ranks()
        self._phase_done = phase_done
        self._device = next(model.parameters()).device
        self.micro_batches = self._training.global_batch_size // self._training.micro_batch_size

    def step(self, state: RunState, forward: Forward | None = None) -> tuple[StepOutcome, RunState]:
        """Take the step after `state`: its outcome and the state after it. Waits for the device.

        forward: from [tokens, targets, sample_index] on the device to the loss; None calls the model.
        """
        training = self._training
        losses = torch.stack([self.micro_batch(state, number, forward) for number in self.own_micro_batches])
        # In their order; and here: what runs out of memory once the weights change cannot be repeated.
        total = self.ranks.gather(losses).t().flatten().sum()
        rate = learning_rate(training, state.step)
        result = self._optimizer.step(rate, total)  # waits for the device
        self._phase_done("optimizer")
        outcome = StepOutcome(total.item(), result.grad_norm, rate, result.skipped, result.nonfinite)
        after = replace(
            state,
            step=state.step + 1,
            next_sample=state.next_sample + training.global_batch_size,
            skipped_steps=state.skipped_steps + outcome.skipped,
        )
        return outcome, after

    @property
    def own_micro_batches(self) -> range:
        """Numbers of those of a step that this rank takes."""
        return range(self.ranks.rank, self.micro_batches, self.ranks.size)

    def micro_batch(self, state: RunState, number: int, forward: Forward | None = None) -> torch.Tensor:
        """Forward and backward of a micro-batch of the step after `state`; its share of the loss, on the device."""
        batch = self.batch(state, number)
        inputs = (batch.tokens, batch.targets, batch.sample_index)
        on_device = [tensor.to(self._device, non_blocking=True) for tensor in inputs]
        self._phase_done("data")
        share = (forward(on_device) if forward else self._model(*on_device)) / self.micro_batches
        self._phase_done("forward")
        self._optimizer.backward(share)
        self._phase_done("backward")
        return share.detach()

    def batch(self, state: RunState, number: int) -> Batch:
        """The samples of a micro-batch of the step after `state`, on the CPU."""
        size = self._training.micro_batch_size
        return self._source.batch(state.next_sample + number * size, size)
