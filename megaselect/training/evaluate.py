"""Validation loss and sample text: the model in eval mode, without gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megaselect.data.blend import DataSource
from megaselect.data.tokenizer import Tokenizer
from megaselect.model.gpt import GPT

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.8, 40


@contextlib.contextmanager
def _evaluating(model: GPT) -> Iterator[torch.device]:
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
    with _evaluating(model) as device:
        losses = []
        for number in range(batches):
            batch = source.batch(number * batch_size, batch_size)
            losses.append(model(batch.tokens.to(device), batch.targets.to(device)))
        return torch.stack(losses).mean().item()


def sample_text(model: GPT, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """`tokens` tokens drawn from the model, from the start of a document; the draws are a function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = [tokenizer.end_of_document_id]
    with _evaluating(model) as device:
        for _ in range(tokens):
            context = torch.tensor([ids[-model.config.seq_length :]], device=device)
            logits = model(context)[0, -1, : tokenizer.vocab_size].float().cpu()
            best = torch.topk(logits / SAMPLE_TEMPERATURE, min(SAMPLE_TOP_K, tokenizer.vocab_size))
            choice = torch.multinomial(torch.softmax(best.values, 0), 1, generator=generator)
            ids.append(int(best.indices[choice]))
    return tokenizer.decode(ids[1:])
