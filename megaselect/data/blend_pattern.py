"""Whose turn it is in a blend: the source of a sample as a function of the sample index, exact for any weights.

All is whole-number arithmetic on the fractions that the weights are: they become whole numbers p_i that add up to P.
The j-th sample (from 0) of a source with share w = p_i/P gets a slot from floor(j/w) on and before ceil((j + 1)/w); in
each slot, the sample goes that must go earliest. Such a schedule exists for any shares (R. Tijdeman, "The chairman
assignment problem", 1980), and earliest deadline first finds it. So after n samples, each source has given floor(n w)
or ceil(n w).

Where P is small the schedule is found once, and repeats. Otherwise it is found in parts, of which each begins with what
was given before it. That follows without the slots before: of the samples whose time has come at a slot t, those up to
one deadline never wait for others, so that min(t, a(s) + t - s over s <= t) of them are gone by t, where a(s) have come
before s (the queue that D. V. Lindley described in 1952). How far s goes back is bounded by the smallest shares but
one: milliseconds a part, but minutes for two shares below 1e-6 among twenty, once these are due.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import NamedTuple

import numpy as np

# Longest schedule that is found as a whole, in 0.1 s; the slots of a part of a longer one.
MAX_PATTERN = 2**16
PART_SLOTS = 2**13

# Of the slots that are looked back on at a time.
_FIRST_SPAN, _LARGEST_SPAN = 2**8, 2**16

# What makes products of a span fit into 64 bits.
_LARGEST_VECTORISED = 2**46


class BlendPattern:
    """In shares given by weights, which need not add up to 1.

    quotas: samples of each source among every `length` samples.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        total = sum(weights)
        shares = [weight / total for weight in weights]
        self.length = lcm(*(share.denominator for share in shares))
        self.quotas = [int(share * self.length) for share in shares]
        self._repeats = self.length <= MAX_PATTERN
        self._part_slots = self.length if self._repeats else PART_SLOTS
        # Training asks in order, a little ahead of it where batches are prefetched, and every source for itself.
        self._recent_slots = lru_cache(maxsize=8)(self._find_slots)
        self._recent_given = lru_cache(maxsize=1024)(self._find_given)

    def count(self, source: int, num_samples: int) -> int:
        """How many of the samples 0, …, num_samples - 1 come from `source`."""
        part, rest = divmod(num_samples, self._part_slots)
        given = self._given(part)[source]
        return given + bisect_left(self._slots(part)[source], rest) if rest else given

    def positions(self, source: int, first: int, stop: int) -> list[int]:
        """Sample indices of the samples number first, …, stop - 1 (from 0) of `source`."""
        found: list[int] = []
        while (number := first + len(found)) < stop:
            part = self._part_of(source, number)
            before = number - self._given(part)[source]
            slots = self._slots(part)[source][before : before + stop - number]
            found += [part * self._part_slots + slot for slot in slots]
        return found

    def first_position(self, numbers: Sequence[int]) -> int:
        """The least sample index that a source gives its sample of that number (from 0) at; one number a source."""
        samples = [self._sample(source, number) for source, number in enumerate(numbers)]
        first = min(samples).deadline
        for sample in sorted(samples):
            if sample.release < first:
                first = min(first, self.positions(sample.source, sample.number, sample.number + 1)[0])
        return first

    def _part_of(self, source: int, number: int) -> int:
        """The part in which a source's sample of that number is."""
        sample = self._sample(source, number)
        # The last one before which no more than `number` samples were given.
        low, high = sample.release // self._part_slots, (sample.deadline - 1) // self._part_slots
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._given(middle)[source] <= number else (low, middle - 1)
        return low

    def _given(self, part: int) -> list[int]:
        """How many samples of each source come before a part."""
        return [part * quota for quota in self.quotas] if self._repeats else self._recent_given(part)

    def _slots(self, part: int) -> list[list[int]]:
        """Of each source, the slots of the part that are its."""
        return self._recent_slots(0 if self._repeats else part)

    def _sample(self, source: int, number: int) -> "_Sample":
        quota, length = self.quotas[source], self.length
        return _Sample(-(-(number + 1) * length // quota), source, number, number * length // quota)

    def _find_slots(self, part: int) -> list[list[int]]:
        start = part * self._part_slots
        stop = start + self._part_slots
        samples = []
        for source, given in enumerate(self._given(part)):
            released = -(-stop * self.quotas[source] // self.length)
            samples += [self._sample(source, number) for number in range(given, released)]
        slots: list[list[int]] = [[] for _ in self.quotas]
        for slot, source in enumerate(_earliest_deadline_first(samples, start, stop)):
            slots[source].append(slot)
        return slots

    def _find_given(self, part: int) -> list[int]:
        slot = part * self._part_slots
        given = [slot * quota // self.length for quota in self.quotas]
        begun = [source for source, quota in enumerate(self.quotas) if slot * quota % self.length]
        # Samples whose time has come and is not over, the most urgent first: those that may have gone or not.
        waiting = sorted(self._sample(source, given[source]) for source in begun)
        gone = self._gone(waiting, slot)
        for rank, sample in enumerate(waiting):
            given[sample.source] += gone[rank + 1] - gone[rank]
        return given

    def _gone(self, waiting: list["_Sample"], slot: int) -> list[int]:
        """How many samples are gone by a slot, less its number: of all but the waiting ones from the n-th on, each n.

        The waiting ones are those of all sources, the most urgent first.
        """
        least = [0] * (len(waiting) + 1)
        span = _FIRST_SPAN
        while any(found > bound for found, bound in zip(least, self._bounds(waiting, slot), strict=True)):
            first = max(1, slot + 1 - span)
            surplus = self._surplus(first, slot)
            for rank in reversed(range(len(waiting))):
                surplus[max(0, waiting[rank].release + 1 - first) :] -= 1
                least[rank] = min(least[rank], int(surplus.min()))
            slot, span = first - 1, min(2 * span, _LARGEST_SPAN)
        return least

    def _bounds(self, waiting: list["_Sample"], slot: int) -> list[int]:
        """Less than these, nothing at the slot and before makes the numbers of `_gone`.

        At a slot where its source is due a part f of it, a sample makes the surplus 1 - f larger and the number 1 less.
        """
        bounds, parts = [0], 0
        for sample in reversed(waiting):
            if sample.release < slot:
                parts += slot * self.quotas[sample.source] - sample.number * self.length
            bounds.append(-(parts // self.length))
        return bounds[::-1]

    def _surplus(self, first: int, last: int) -> np.ndarray:
        """By how many the samples that have come before a slot are more than the slots: for first, …, last; [n] i64."""
        slots = last + 1 - first
        come = [-(-first * quota // self.length) for quota in self.quotas]
        surplus = sum(come) - first - np.arange(slots)
        for quota, before in zip(self.quotas, come, strict=True):
            if self.length < _LARGEST_VECTORISED:
                rest = first * quota - before * self.length
                surplus += -(-(rest + quota * np.arange(slots)) // self.length)
            else:
                numbers = range(before, -(-last * quota // self.length))
                released = [number * self.length // quota + 1 - first for number in numbers]
                surplus += np.cumsum(np.bincount(released, minlength=slots))
        return surplus


class _Sample(NamedTuple):
    """It may take the slots from `release` on and before `deadline`. In the order of their urgency."""

    deadline: int
    source: int
    number: int
    release: int


def _earliest_deadline_first(samples: list[_Sample], start: int, stop: int) -> Iterator[int]:
    """The source of each of the slots start, …, stop - 1."""
    samples.sort(key=lambda sample: sample.release)
    waiting: list[_Sample] = []
    released = 0
    for slot in range(start, stop):
        while released < len(samples) and samples[released].release <= slot:
            heapq.heappush(waiting, samples[released])
            released += 1
        sample = heapq.heappop(waiting)
        assert slot < sample.deadline
        yield sample.source
