"""One optimizer step over the global batch: what `train` repeats and what `compare` times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megaselect.config import Config
from megaselect.data.sampler import BatchSource
from megaselect.model.gpt import GPT
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
    """Takes the steps of one run. phase_done hears "data", "forward", "backward" (once a micro-batch), "optimizer"."""

    def __init__(
        self,
        config: Config,
        model: GPT,
        optimizer: MixedPrecisionAdamW,
        source: BatchSource,
        phase_done: Callable[[str], None] = _ignore,
    ) -> None:
        self._training, self._model, self._optimizer, self._source = config.training, model, optimizer, source
        self._phase_done = phase_done
        self._device = next(model.parameters()).device

    def step(self, state: RunState, forward: Forward | None = None) -> tuple[StepOutcome, RunState]:
        """Take the step after `state`: its outcome and the state after it. Waits for the device.

        forward: from [tokens, targets, sample_index] on the device to the loss; None calls the model.
        """
        training = self._training
        micro_batches = training.global_batch_size // training.micro_batch_size
        losses = [self._micro_batch(state, number, micro_batches, forward) for number in range(micro_batches)]
        loss = torch.stack(losses).sum()  # here: what runs out of memory once the weights change cannot be repeated
        rate = learning_rate(training, state.step)
        result = self._optimizer.step(rate)
        self._phase_done("optimizer")
        # item() waits for the device: the step is done when its loss is known.
        outcome = StepOutcome(loss.item(), result.grad_norm, rate, result.skipped)
        after = replace(
            state,
            step=state.step + 1,
            next_sample=state.next_sample + training.global_batch_size,
            skipped_steps=state.skipped_steps + outcome.skipped,
        )
        return outcome, after

    def _micro_batch(
        self, state: RunState, number: int, micro_batches: int, forward: Forward | None
    ) -> torch.Tensor:  # fmt: skip
        """Forward and backward of one micro-batch; its share of the step's mean loss, still on the device."""
        size = self._training.micro_batch_size
        batch = self._source.batch(state.next_sample + number * size, size)
        inputs = (batch.tokens, batch.targets, batch.sample_index)
        on_device = [tensor.to(self._device, non_blocking=True) for tensor in inputs]
        self._phase_done("data")
        share = (forward(on_device) if forward else self._model(*on_device)) / micro_batches
        self._phase_done("forward")
        self._optimizer.backward(share)
        self._phase_done("backward")
        return share.detach()
