"""Validation loss: the model in eval mode, without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megaselect.data.blend import DataSource
from megaselect.model.gpt import GPT
from megaselect.training.out_of_memory import memory_errors_explained


@contextlib.contextmanager
def evaluating(model: GPT) -> Iterator[torch.device]:
    """The model in eval mode, without gradients, and its device; afterwards it trains again."""
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train()


def evaluate(model: GPT, source: DataSource, batches: int, batch_size: int) -> float:
    """Mean loss over the first `batches` micro-batches of the split, or over all that it has: the same every time."""
    batch_size = min(batch_size, source.num_windows)
    batches = min(batches, source.num_windows // batch_size)
    remedy = "it keeps nothing for backward; lower --training.micro-batch-size, or set --training.loss-chunk-tokens"
    with memory_errors_explained("evaluating", remedy), evaluating(model) as device:
        losses = []
        for number in range(batches):
            batch = source.batch(number * batch_size, batch_size)
            losses.append(model(batch.tokens.to(device), batch.targets.to(device)))
        return torch.stack(losses).mean().item()
