"""Several datasets mixed by weight. Which one a sample comes from is a function of the sample index alone.

The weights become whole numbers p_i that add up to P, the length of a pattern that repeats. The j-th sample (from 1) of
a source with share w = p_i/P gets a slot from floor((j - 1)/w) on and before ceil(j/w); in each slot, the sample goes
that must go earliest. Such a schedule exists for any shares (R. Tijdeman, "The chairman assignment problem", 1980), and
earliest deadline first finds it. So after n samples, each source has given floor(n w) or ceil(n w).
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np
import torch

from megaselect.data.sampler import Batch, TokenSource, split_windows

# Shares whose common denominator is larger are rounded to multiples of 1/MAX_PATTERN. Building that takes 0.1 s.
MAX_PATTERN = 2**16


class BlendPattern:
    """Whose turn it is, in shares given by weights, which need not add up to 1. No share is rounded to nothing."""

    def __init__(self, weights: Sequence[Fraction]) -> None:
        self.quotas = _quotas(weights)  # samples of each source in one pattern
        self.length = sum(self.quotas)
        order = np.array(_schedule(self.quotas))
        self._slots = [np.flatnonzero(order == source) for source in range(len(self.quotas))]

    def count(self, source: int, num_samples: int) -> int:
        """How many of the samples 0, …, num_samples - 1 come from `source`."""
        repeats, rest = divmod(num_samples, self.length)
        return repeats * self.quotas[source] + int(np.searchsorted(self._slots[source], rest))

    def positions(self, source: int, first: int, stop: int) -> list[int]:
        """Sample indices of the samples number first, …, stop - 1 (from 0) of `source`."""
        quota, slots = self.quotas[source], self._slots[source]
        return [number // quota * self.length + int(slots[number % quota]) for number in range(first, stop)]


class BlendedSource:
    """Batches of several sources, mixed. Each gives its own samples in its own order, counted from 0."""

    def __init__(self, sources: Sequence[TokenSource], weights: Sequence[Fraction]) -> None:
        self.sources, self.pattern = list(sources), BlendPattern(weights)
        self.num_tokens = sum(source.num_tokens for source in self.sources)
        self.num_windows = min(
            self.pattern.positions(number, source.num_windows, source.num_windows + 1)[0]
            for number, source in enumerate(self.sources)
        )

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


def _quotas(weights: Sequence[Fraction]) -> list[int]:
    total = sum(weights)
    shares = [weight / total for weight in weights]
    length = lcm(*(share.denominator for share in shares))
    if length > MAX_PATTERN:
        # What the roundings lack or have too much goes to the largest share, where it matters least.
        quotas = [max(1, round(share * MAX_PATTERN)) for share in shares]
        quotas[quotas.index(max(quotas))] += MAX_PATTERN - sum(quotas)
        return quotas
    return [int(share * length) for share in shares]


def _schedule(quotas: Sequence[int]) -> list[int]:
    """The source of each slot of the pattern."""
    length = sum(quotas)
    # (release, deadline, source) of every sample, by release
    samples = sorted(
        (number * length // quota, -(-(number + 1) * length // quota), source)
        for source, quota in enumerate(quotas)
        for number in range(quota)
    )
    waiting: list[tuple[int, int]] = []
    order: list[int] = []
    released = 0
    for slot in range(length):
        while released < length and samples[released][0] <= slot:
            heapq.heappush(waiting, samples[released][1:])
            released += 1
        deadline, source = heapq.heappop(waiting)
        assert slot < deadline
        order.append(source)
    return order
