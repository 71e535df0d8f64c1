"""Drawing tokens from a model's logits. Shapes: v vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from megaselect.data.tokenizer import Tokenizer
from megaselect.errors import ConfigError, SamplingError
from megaselect.models.gpt.model import GPT
from megaselect.training.evaluate import evaluating

DRAWN_AT_MOST = 4  # tokens of a sample, for each that is asked for


@dataclass(frozen=True)
class SamplingSettings:
    """Which tokens may be drawn and how evenly. Raises ConfigError where a value is out of range.

    temperature: what logits are divided by; 0 takes the likeliest token. top_k: only the k likeliest. top_p: only the
    smallest set of the likeliest whose probabilities reach p in sum, by the probabilities that temperature and top_k
    leave (nucleus sampling, Holtzman et al. 2020).
    """

    temperature: float = 0.8
    top_k: int | None = 40
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"--temperature {self.temperature:g}: must be 0 (the likeliest token) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"--top-k {self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p {self.top_p:g}: must lie in (0, 1]")


def candidates(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn, likeliest first, and their probabilities, both [n], from logits fp32 [v].

    Raises SamplingError where logits are not finite.
    """
    if not logits.isfinite().all():
        raise SamplingError("the model's logits are not finite: its weights or activations have overflowed")
    if settings.temperature == 0:
        return logits.argmax().view(1), torch.ones(1)
    best = torch.topk(logits, min(settings.top_k or len(logits), len(logits)))
    # From the largest, so that a tiny temperature takes none to infinity.
    probabilities = torch.softmax((best.values - best.values[0]) / settings.temperature, 0)
    if settings.top_p in (None, 1):
        return best.indices, probabilities
    likelier = probabilities.double().cumsum(0) - probabilities  # in sum, than each
    kept = int((likelier < settings.top_p).sum())
    return best.indices[:kept], probabilities[:kept] / probabilities[:kept].sum()


def draw(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """One token id, by logits fp32 [v] on the CPU. The same generator state gives the same token."""
    tokens, probabilities = candidates(logits, settings)
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])


def draw_tokens(
    next_logits: Callable[[Sequence[int]], Tensor], prompt: Sequence[int], settings: SamplingSettings, seed: int
) -> Iterator[int]:
    """Tokens after the prompt (ids, at least one), without end; the draws are a function of the seed.

    next_logits: fp32 [v] on the CPU for what follows all ids so far.
    """
    generator, ids = torch.Generator().manual_seed(seed), list(prompt)
    while True:
        ids.append(draw(next_logits(ids), settings, generator))
        yield ids[-1]


def sample_text(model: GPT, tokenizer: Tokenizer, tokens: int, seed: int) -> str:
    """Text drawn from the model, from the start of a document; the draws are a function of the seed.

    It ends with the token that is number `tokens` of those that are more than blanks, or after DRAWN_AT_MOST times as
    many of all: code has a token for each blank of its indentation.
    """

    def next_logits(ids: Sequence[int]) -> Tensor:
        context = torch.tensor([ids[-model.config.seq_length :]], device=device)
        return model(context)[0, -1, : tokenizer.vocab_size].float().cpu()

    with evaluating(model) as device:
        drawn: list[int] = []
        shown = 0
        draws = draw_tokens(next_logits, [tokenizer.end_of_document_id], SamplingSettings(), seed)
        for token in islice(draws, DRAWN_AT_MOST * tokens):
            drawn.append(token)
            shown += bool(tokenizer.decode([token]).strip())
            if shown == tokens:
                break
        return tokenizer.decode(drawn)
