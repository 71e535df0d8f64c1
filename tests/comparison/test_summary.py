from dataclasses import replace

import pytest
from measurements import measurement, row

from megaselect.comparison.result import Agreement, FailedSetting, PeakBytes, Spread
from megaselect.comparison.summary import Measured, summarise


def summarised(*items):
    return {setting.name: setting for setting in summarise(items, tokens_per_step=70)}


def test_times_are_those_of_all_steps_and_rates_of_the_median_step():
    [none] = summarised(Measured(row("none"), [measurement((20, 40)), measurement((60, 80, 100), number=2)])).values()
    assert none.speed.backward_seconds == Spread(pytest.approx(0.06), pytest.approx(0.036), pytest.approx(0.084))
    assert none.speed.step_seconds.median == pytest.approx(0.075)
    assert none.speed.tokens_per_s == pytest.approx(70 / 0.075)
    assert [(sample.round, sample.step) for sample in none.samples] == [(1, 2), (1, 3), (2, 2), (2, 3), (2, 4)]
    assert (none.speed.recompute_seconds, none.speed.mfu, none.speed.hfu, none.agreement) == (None, None, None, None)


def test_recomputation_is_what_backward_takes_more_round_by_round():
    """The second round ran on a machine twice as slow: over all rounds the difference of medians would be 60 ms."""
    none = Measured(row("none"), [measurement((20, 20)), measurement((40, 40)), measurement((20, 20))])
    full = Measured(row("full"), [measurement((30, 30)), measurement((90, 90)), measurement((90, 90))])
    assert summarised(none, full)["full"].speed.recompute_seconds == pytest.approx(0.050)


def test_mfu_and_hfu_where_the_peak_is_known():
    [none] = summarised(Measured(row("none"), [measurement((35, 35), peak_flops=1e6)])).values()
    assert (none.speed.mfu, none.speed.hfu) == (pytest.approx(3000 / 5e4), pytest.approx(4000 / 5e4))


def test_peaks_are_the_highest_of_the_allocator_and_the_median_of_the_process():
    rounds = [
        measurement(peak=PeakBytes(allocated, None, rss)) for allocated, rss in ((50, 300), (None, 100), (None, 200))
    ]
    [none] = summarised(Measured(row("none"), rounds)).values()
    assert none.peak == PeakBytes(50, None, 200)


def test_equal_trainings_agree_to_the_bit():
    found = summarised(Measured(row("none"), [measurement()]), Measured(row("full"), [measurement((50, 50))]))
    assert found["full"].agreement == Agreement("none", True, None, (0.0, 0.0, 0.0))


def test_the_first_step_that_differs_is_named():
    none = Measured(row("none"), [measurement()])
    full = Measured(row("full"), [measurement(losses=(8.0, 7.25, None), sha="bb")])
    assert summarised(none, full)["full"].agreement == Agreement("none", False, 2, (0.0, -0.25, None))


@pytest.mark.parametrize(("changed", "step"), [({"sha": "bb"}, None), ({"grad_norms": (1.0, 1.0, 1.5)}, 3)])
def test_equal_losses_alone_are_no_agreement(changed, step):
    found = summarised(Measured(row("none"), [measurement()]), Measured(row("full"), [measurement(**changed)]))
    assert (found["full"].agreement.equal, found["full"].agreement.first_different_step) == (False, step)


def test_each_attention_has_a_reference_of_its_own():
    items = [Measured(row(name), [measurement(losses=(loss,))]) for name, loss in (("none", 8.0), ("fused none", 7.0))]
    items.append(Measured(row("fused all"), [measurement(losses=(7.0,))]))
    found = summarised(*items)
    assert found["fused all"].agreement == Agreement("fused none", True, None, (0.0,))
    assert found["fused none"].agreement is None


def test_rounds_that_trained_differently_are_told():
    same, other = measurement(), measurement(losses=(8.0, 7.5, 6.0))
    assert summarised(Measured(row("none"), [same, replace(same)]))["none"].rounds_equal is True
    assert summarised(Measured(row("none"), [same, same, other]))["none"].rounds_equal is False
    assert summarised(Measured(row("none"), [same]))["none"].rounds_equal is None


def test_a_row_that_failed_keeps_its_reason_and_is_no_reference():
    none = Measured(row("none"), [measurement()], failure="out of memory")
    found = summarised(none, Measured(row("full"), [measurement()]))
    assert found["none"] == FailedSetting("none", "unfused", 0.1, {"mode": "none"}, failure="out of memory")
    assert (found["full"].agreement, found["full"].speed.recompute_seconds) == (None, None)
