"""Where a model drops out, and which masks must fall there: by docs/dropout-mask.md, not by what the model says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megaselect.config import Config, ModelConfig
from megaselect.kernels.dropout_mask import (
    ATTENTION_PROJECTION_SITE,
    EMBEDDING_SITE,
    MLP_SITE,
    SITES_PER_LAYER,
    Plane,
    drop_threshold,
    keep_hidden,
    keep_planes,
)

# Masks are compared over the last so many positions, in an attention of those positions among themselves.
WINDOW_POSITIONS = 128


@dataclass(frozen=True)
class Site:
    """heads: 0 for a hidden site. first: where the window begins; positions: how many it has."""

    path: str
    number: int
    threshold: int
    heads: int
    first: int
    positions: int


def sites_of(config: Config) -> dict[int, Site]:
    """Number -> site, for every site that drops anything."""
    model = config.model
    first = max(model.seq_length - WINDOW_POSITIONS, 0)
    sites = [
        Site(path, number, drop_threshold(dropout_p), heads, first, model.seq_length - first)
        for path, number, dropout_p, heads in _places(config.model)
    ]
    return {site.number: site for site in sites if site.threshold}


def _places(model: ModelConfig) -> Iterator[tuple[str, int, float, int]]:
    """(path, number of the site, dropout probability, heads)"""
    yield "embedding_dropout", EMBEDDING_SITE, model.hidden_dropout_p, 0
    for layer in range(model.num_layers):
        path, site = f"layers.{layer}", layer * SITES_PER_LAYER
        yield f"{path}.attention.core", site, model.attention_dropout_p, model.num_attention_heads
        yield f"{path}.attention_dropout", site + ATTENTION_PROJECTION_SITE, model.hidden_dropout_p, 0
        yield f"{path}.mlp_dropout", site + MLP_SITE, model.hidden_dropout_p, 0


class MaskFunction:
    """The masks that must fall for the samples of one batch: bool on the CPU, True where kept. Each is made once."""

    def __init__(self, seed: int, samples: Tensor) -> None:
        self.seed, self.samples = seed, samples.cpu()
        self._known: dict[tuple[int, int], Tensor] = {}

    def attention(self, site: Site, sample: int) -> Tensor:
        """[heads, positions, positions] of the sample at this place in the batch; False above the diagonal."""
        key = (site.number, sample)
        if key not in self._known:
            plane = Plane(self.seed, site.number, site.threshold, site.first, site.first)
            one, size = self.samples[sample : sample + 1], site.positions
            self._known[key] = keep_planes(one, plane, site.heads, size, size, causal=True)[0].to(torch.bool)
        return self._known[key]

    def hidden(self, site: Site, width: int) -> Tensor:
        """[positions, b, width]"""
        key = (site.number, width)
        if key not in self._known:
            plane = Plane(self.seed, site.number, site.threshold, site.first)
            self._known[key] = keep_hidden(self.samples, plane, site.positions, width).to(torch.bool)
        return self._known[key]
