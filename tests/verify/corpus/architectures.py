"""Unmodified architectures of transformers, tiny, with random weights, a batch and a loss; dropout of every kind on.

Each is one line: name, kind, its classes, sizes that make it tiny. What a configuration has that speaks of dropping,
hidden states, attention, activations, is set to DROPOUT, and what drops whole layers to LAYER_DROPOUT.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from corpus.fault import Case

DROPOUT = 0.1
LAYER_DROPOUT = 0.4  # of two layers one is seldom dropped by less
VOCABULARY, TOKENS, SAMPLES, LABELS = 40, 8, 2, 3

Batch = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """name: transformers' own, as of its folder. batch: makes one with labels. base: its Config's and Model's names."""

    name: str
    kind: str
    config: str
    model: str
    batch: Callable[[], Batch]
    sizes: dict[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """A new model in training mode; the same weights each time."""
        import transformers

        config = with_dropout(getattr(transformers, self.config)(**self.sizes))
        torch.manual_seed(0)
        return getattr(transformers, self.model)(config).train()

    def case(self, switch_on: Callable[[nn.Module], None]) -> Case:
        """With checkpointing switched on in some way."""
        model = self.build()
        switch_on(model)
        return Case(model, self.batch())


def with_dropout(config: Any) -> Any:
    """The configuration, those inside it too, with every number that speaks of dropping set to that."""
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            with_dropout(value)
        elif "drop" in key and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, key, LAYER_DROPOUT if "layerdrop" in key or "drop_path" in key else DROPOUT)
    return config


def generator() -> torch.Generator:
    """So that every batch is the same each time."""
    return torch.Generator().manual_seed(2)


def causal() -> Batch:
    """Tokens, their mask with padding at one sample's end, and the tokens as labels."""
    tokens = torch.randint(3, VOCABULARY, (SAMPLES, TOKENS), generator=generator())
    mask = torch.ones_like(tokens)
    mask[1, -2:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def unpadded() -> Batch:
    """For models that take no mask."""
    batch = causal()
    return {"input_ids": batch["input_ids"], "labels": batch["input_ids"]}


def classified() -> Batch:
    """Tokens with a mask, and a class for each sample."""
    return causal() | {"labels": torch.arange(SAMPLES)}


def image(size: int = 16) -> Batch:
    """Pixels, and a class for each picture."""
    return {"pixel_values": noise(SAMPLES, 3, size, size), "labels": torch.arange(SAMPLES)}


def masked_image() -> Batch:
    """For masked autoencoders, which hide patches themselves."""
    return {"pixel_values": noise(SAMPLES, 3, 16, 16)}


def waveform() -> Batch:
    """Samples of sound, and a class for each piece."""
    return {"input_values": noise(SAMPLES, 800), "labels": torch.arange(SAMPLES)}


def spoken() -> Batch:
    """Samples of sound, and tokens to be found in it."""
    return {"input_values": noise(SAMPLES, 800), "labels": torch.full((SAMPLES, 2), 5)}


def spectrogram() -> Batch:
    """Mel features, and the text that was said."""
    return {"input_features": noise(SAMPLES, 8, 2 * TOKENS), "labels": causal()["input_ids"]}


def noise(*shape: int) -> Tensor:
    """Normal numbers, fp32."""
    return torch.randn(shape, generator=generator())


@functools.cache
def all_architectures() -> tuple[Architecture, ...]:
    """Every one, in the order of the table."""
    from corpus import text, vision_and_speech

    return (*text.ARCHITECTURES, *vision_and_speech.ARCHITECTURES)


def by_name(name: str) -> Architecture:
    """The one of this name."""
    return next(found for found in all_architectures() if found.name == name)
