"""How measurements of time are summed up and compared. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from megaselect.comparison.result import StepSample, TrainedSetting


class Quantiles(NamedTuple):
    """Of a list of measurements, in their unit."""

    low: float
    median: float
    high: float


def quantiles(values: Sequence[float]) -> Quantiles:
    """The 20 % quantile, the median and the 80 % quantile; of a single value, that value thrice."""
    if len(values) == 1:
        return Quantiles(values[0], values[0], values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Quantiles(fifths[0], statistics.median(values), fifths[3])


def slowdown(own: TrainedSetting, base: TrainedSetting) -> float:
    """The median over rounds of the ratio of their median steps: what slows a whole round down hits both.

    Without steps of the same rounds it is the ratio of the medians of all steps.
    """
    mine, theirs = _by_round(own.samples), _by_round(base.samples)
    ratios = [mine[number] / theirs[number] for number in mine if number in theirs]
    if ratios:
        return statistics.median(ratios)
    return own.speed.step_seconds.median / base.speed.step_seconds.median


def _by_round(samples: Sequence[StepSample]) -> dict[int, float]:
    rounds: dict[int, list[float]] = {}
    for sample in samples:
        rounds.setdefault(sample.round, []).append(sample.seconds)
    return {number: statistics.median(seconds) for number, seconds in rounds.items()}
