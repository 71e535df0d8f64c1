"""Several datasets mixed by weight. Which one a sample comes from, data.blend_pattern says."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from megaselect.data.blend_pattern import BlendPattern
from megaselect.data.sampler import Batch, TokenSource, split_windows


class BlendedSource:
    """Batches of several sources, mixed. Each gives its own samples in its own order, counted from 0."""

    def __init__(self, sources: Sequence[TokenSource], weights: Sequence[Fraction]) -> None:
        self.sources, self.pattern = list(sources), BlendPattern(weights)
        self.num_tokens = sum(source.num_tokens for source in self.sources)
        self.num_windows = self.pattern.first_position([source.num_windows for source in self.sources])

    def batch(self, first_sample_index: int, micro_batch_size: int) -> Batch:
        """Samples first_sample_index, …, first_sample_index + micro_batch_size - 1, on the CPU."""
        end = first_sample_index + micro_batch_size
        rows: list[int] = []
        windows: list[np.ndarray] = []
        for number, source in enumerate(self.sources):
            first, stop = (self.pattern.count(number, index) for index in (first_sample_index, end))
            if stop > first:
                rows += [index - first_sample_index for index in self.pattern.positions(number, first, stop)]
                windows.append(source.windows(first, stop - first))
        joined = np.concatenate(windows)[np.argsort(rows)]  # [b, s + 1]
        return split_windows(torch.from_numpy(joined), first_sample_index)

    def counts(self, num_samples: int) -> dict[str, int]:
        """Prefix of each dataset -> how many of the samples 0, …, num_samples - 1 come from it."""
        return {source.prefix: self.pattern.count(number, num_samples) for number, source in enumerate(self.sources)}


DataSource = TokenSource | BlendedSource
