"""Ratios of times are taken within rounds."""

from dataclasses import replace

import pytest
from measurements import measurement, row

from megaselect.comparison.result import Speed, Spread, StepSample
from megaselect.comparison.step_times import slowdown
from megaselect.comparison.summary import Measured, summarise

[TRAINED] = summarise([Measured(row("none"), [measurement()])], 1)


def setting(*rounds):
    samples = tuple(
        StepSample(number, step, seconds, 0.0, 0.0, 0.0)
        for number, steps in enumerate(rounds, 1)
        for step, seconds in enumerate(steps, 1)
    )
    spread = Spread(10.0 * len(rounds), 0.0, 0.0)
    speed = Speed(spread, spread, spread, spread, None, 0.0, None, None)
    return replace(TRAINED, speed=speed, samples=samples)


def test_a_round_that_is_slow_for_both_changes_nothing():
    base, own = setting([1.0, 1.1, 0.9], [10.0, 12.0, 10.0]), setting([1.5, 1.6, 1.5], [15.0, 15.0, 40.0])
    assert slowdown(own, base) == 1.5


def test_the_median_of_the_rounds_is_taken():
    assert slowdown(setting([3.0], [2.0], [90.0]), setting([1.0], [1.0], [1.0])) == 3.0


def test_without_a_common_round_it_is_that_of_all_steps():
    assert slowdown(replace(setting([3.0]), samples=()), setting([1.0], [1.0])) == pytest.approx(0.5)
