"""How many times as long as another setting's a setting's step takes. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from megaselect.comparison.result import SettingResult, StepSample


def slowdown(own: SettingResult, base: SettingResult) -> float:
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
