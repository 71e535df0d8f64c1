"""What takes steps on each rank of the part `scale`: Megaselect by its own pieces, and a plain GPT under FSDP2.

Both get the same micro-batches, accumulate as many of them, clip to the same norm and update by AdamW. The plain one is
what PyTorch's own documentation puts together: fully_shard around each block and the model, clip_grad_norm_, and
torch.optim.AdamW, fused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from benchmarks.families import DATA_SEED, draw
from benchmarks.plain_gpt import PlainGPT, call, checkpointed, saving_products
from megaselect import ledger
from megaselect.build import build_distributed
from megaselect.config import Config
from megaselect.data.sampler import Batch, split_windows
from megaselect.devices import resolve_placement
from megaselect.distributed.ranks import Ranks
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.phases import PhaseTimes
from megaselect.training.state import RunState
from megaselect.training.step import Stepper

RUN_LAYER = {"plain": call, "plain, checkpoint": checkpointed, "plain, SAC": saving_products}
UNSEEN_BY_HOOKS = ("plain, SAC",)  # its cache is invisible to the ledger


class Trainer(Protocol):
    """phases: of the step that was taken last."""

    phases: PhaseTimes

    def step(self) -> None:
        """A step of the run."""

    def saved_bytes(self) -> int:
        """For backward, of this rank's first micro-batch; nothing else comes of it."""


@dataclass(frozen=True)
class RandomWindows:
    """Random tokens, a function of the sample's number."""

    vocab_size: int
    length: int

    def batch(self, first: int, size: int) -> Batch:
        """See BatchSource.batch."""
        rows = []
        for sample in range(first, first + size):
            generator = torch.Generator().manual_seed(DATA_SEED + sample)
            rows.append(torch.randint(self.vocab_size, (self.length + 1,), generator=generator))
        return split_windows(torch.stack(rows), first)


def source_of(config: Config) -> RandomWindows:
    """Of the config's shape."""
    return RandomWindows(config.model.vocab_size, config.model.seq_length)


class Megaselect:
    """Ours, under any recompute and parallel settings; ranks: Ranks() for a process alone."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        placement = resolve_placement(config.training)
        self._model, _, spread = build_distributed(config, placement, ranks)
        self._optimizer = MixedPrecisionAdamW(self._model, config.training, spread)
        self.phases = PhaseTimes(placement.device)
        source = source_of(config)
        self._stepper = Stepper(config.training, self._model, self._optimizer, source, self.phases.done, ranks)
        self._device, self._state = placement.device, RunState(0, 0)

    def step(self) -> None:
        """See Trainer.step."""
        self.phases.start()
        _, self._state = self._stepper.step(self._state)

    def saved_bytes(self) -> int:
        """See Trainer.saved_bytes."""
        batch = self._stepper.batch(self._state, self._stepper.ranks.rank)
        inputs = [tensor.to(self._device) for tensor in (batch.tokens, batch.targets, batch.sample_index)]
        with ledger.record(self._model) as kept:
            loss = self._model(*inputs)
        self._optimizer.backward(loss)
        self._optimizer.abandon_step()
        return kept.total


class PlainFSDP:
    """A plain GPT under FSDP2. way: of RUN_LAYER. sdpa: by torch's own attention; else by matrix products."""

    def __init__(self, config: Config, ranks: Ranks, way: str, sdpa: bool) -> None:
        self._config, self._ranks, training = config, ranks, config.training
        placement = resolve_placement(training)
        self._device = placement.device
        self._model = _sharded(config, placement.device, placement.dtype, RUN_LAYER[way], sdpa)
        parameters = list(self._model.parameters())
        groups = [
            {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": training.weight_decay},
            {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (training.beta1, training.beta2)
        self._optimizer = torch.optim.AdamW(groups, lr=training.lr, betas=betas, eps=training.epsilon, fused=True)
        self._source, self._next = source_of(config), 0
        self.phases = PhaseTimes(placement.device)

    def step(self) -> None:
        """See Trainer.step."""
        training = self._config.training
        self.phases.start()
        rounds = training.global_batch_size // training.micro_batch_size // self._ranks.size
        for number in range(rounds):
            tokens, targets = self._inputs(number)
            self.phases.done("data")
            loss = self._model(tokens, targets) / rounds  # FSDP2 takes the mean over ranks
            self.phases.done("forward")
            loss.backward()
            self.phases.done("backward")
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), training.clip_grad)
        self._optimizer.step()
        self._optimizer.zero_grad()
        _whole(norm).item()  # what a run writes down
        self.phases.done("optimizer")
        self._next += training.global_batch_size

    def saved_bytes(self) -> int:
        """See Trainer.saved_bytes."""
        with ledger.record(self._model) as kept:
            loss = self._model(*self._inputs(0))
        loss.backward()
        self._optimizer.zero_grad()
        return kept.total

    def _inputs(self, number: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets of this rank's micro-batch of a round."""
        size = self._config.training.micro_batch_size
        first = self._next + (number * self._ranks.size + self._ranks.rank) * size
        batch = self._source.batch(first, size)
        return batch.tokens.to(self._device), batch.targets.to(self._device)


def _sharded(
    config: Config, device: torch.device, dtype: torch.dtype, run_layer: Callable[..., Tensor], sdpa: bool
) -> PlainGPT:
    """fp32 weights that every rank draws alike. Checkpoints stand inside of FSDP2's groups, as PyTorch recommends."""
    with torch.device("meta"):
        model = PlainGPT(config.model)
    model.to_empty(device=device)
    draw(model, config, device)
    model.use_sdpa(sdpa)
    policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
    for layer in model.layers:
        layer.forward = functools.partial(run_layer, layer.forward)
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy)
    return model


def _whole(norm: Any) -> Tensor:
    """Of a tensor that may be distributed."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
