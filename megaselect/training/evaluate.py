"""Loss on a split: the model in eval mode, without gradients and without dropout."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

from megaselect.data.sampler import BatchSource
from megaselect.distributed.ranks import Ranks
from megaselect.models.gpt.model import GPT


class Split(BatchSource, Protocol):
    """What is evaluated on: windows, counted from 0. Any of them can be asked for, in any order."""

    num_windows: int


@contextlib.contextmanager
def evaluating(model: GPT) -> Iterator[torch.device]:
    """The model in eval mode, without gradients, and its device; afterwards it trains again."""
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train()


def _to_the_end(_: int) -> bool:
    """Nobody stops it."""
    return True


def evaluate(
    model: GPT,
    source: Split,
    samples: int,
    micro_batch_size: int,
    goes_on: Callable[[int], bool] = _to_the_end,
    ranks: Ranks | None = None,
) -> float | None:
    """Mean loss, in nats a token, over the first `samples` windows of the split, or over all that it has.

    The last micro-batch is smaller where they are no multiple. Each window's loss is summed in fp64 and kept by the
    window's number, so the micro-batch changes no more than the last bits, by the matrix products of another shape.
    goes_on: asked before each micro-batch, with the number of windows done; where it says no, the result is None.
    ranks: take turns with the micro-batches, and all have the result; goes_on must say the same on each.
    """
    windows, ranks = min(samples, source.num_windows), ranks or Ranks()
    with evaluating(model) as device:
        losses = torch.zeros(windows, dtype=torch.float64, device=device)
        for done in range(0, windows, micro_batch_size * ranks.size):
            if not goes_on(done):
                return None
            own = done + micro_batch_size * ranks.rank
            first = own if own < windows else done  # a cut model needs every rank; the result of this one is not used
            stop = min(first + micro_batch_size, windows)
            batch = source.batch(first, stop - first)
            of_tokens = model(batch.tokens.to(device), batch.targets.to(device), reduction="none")  # [b, s]
            losses[first:stop] = of_tokens.mean(1, dtype=torch.float64)
        window = torch.arange(windows, device=device)
        taken_by = window // micro_batch_size % ranks.size
        return ranks.gather(losses)[taken_by, window].mean().item()
