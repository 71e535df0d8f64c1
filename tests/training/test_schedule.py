"""Learning rates: exact values where the schedule's parts meet, and their direction in between."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaselect.config import TrainingConfig
from megaselect.training.schedule import learning_rate

NAMES = ("cosine", "linear", "constant", "wsd")


def settings_of(schedule, **more):
    values = {"lr": 1.0, "min_lr": 0.125, "warmup_steps": 4, "max_steps": 20, "schedule": schedule, **more}
    return TrainingConfig(**values)


def rates(settings, steps=None):
    return [learning_rate(settings, step) for step in range(steps or settings.max_steps)]


@pytest.mark.parametrize("schedule", NAMES)
def test_warm_up_rises_in_equal_steps_and_reaches_lr_at_its_last(schedule):
    assert rates(settings_of(schedule))[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("schedule", NAMES)
def test_without_warm_up_the_first_step_has_lr(schedule):
    assert learning_rate(settings_of(schedule, warmup_steps=0), 0) == 1.0


@pytest.mark.parametrize("schedule", NAMES)
def test_warm_up_starts_above_0(schedule):
    assert learning_rate(settings_of(schedule, warmup_steps=20), 0) == 1 / 20


def test_cosine():
    settings = settings_of("cosine")
    assert learning_rate(settings, 4) == 1.0
    assert learning_rate(settings, 12) == 0.125 + 0.875 * 0.5
    assert learning_rate(settings, 20) == 0.125
    # cos(pi / 4), cos(3 pi / 4): a quarter and three quarters of the decay
    assert learning_rate(settings, 8) == pytest.approx(0.125 + 0.875 * (0.5 + 0.5**1.5), rel=1e-15)
    assert learning_rate(settings, 16) == pytest.approx(0.125 + 0.875 * (0.5 - 0.5**1.5), rel=1e-15)


def test_linear():
    settings = settings_of("linear")
    assert [learning_rate(settings, step) for step in (4, 8, 12, 16, 20)] == [1.0, 0.78125, 0.5625, 0.34375, 0.125]


def test_constant():
    assert set(rates(settings_of("constant", warmup_steps=0), 100)) == {1.0}


def test_wsd_decays_over_its_last_fifth():
    settings = settings_of("wsd")
    assert rates(settings)[4:17] == [1.0] * 13
    assert [learning_rate(settings, step) for step in (17, 18, 19, 20)] == [0.78125, 0.5625, 0.34375, 0.125]


def test_wsd_decays_over_decay_steps():
    settings = settings_of("wsd", decay_steps=8)
    assert rates(settings)[4:13] == [1.0] * 9
    assert [learning_rate(settings, step) for step in (14, 16, 18, 20)] == [0.78125, 0.5625, 0.34375, 0.125]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_steps_count_from_the_warm_up_and_min_lr_stays(schedule):
    settings = settings_of(schedule, decay_steps=8)
    assert learning_rate(settings, 8) == 0.5625
    assert [learning_rate(settings, step) for step in (12, 13, 19, 10_000)] == [0.125] * 4


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_min_lr_stays_after_the_run(schedule):
    assert learning_rate(settings_of(schedule), 1000) == 0.125


@pytest.mark.parametrize("schedule", NAMES)
@pytest.mark.parametrize("max_steps", [1, 2, 4])
def test_runs_shorter_than_any_part_of_the_schedule(schedule, max_steps):
    assert rates(settings_of(schedule, max_steps=max_steps, warmup_steps=0))[0] == 1.0
    assert rates(settings_of(schedule, max_steps=max_steps)) == [0.25, 0.5, 0.75, 1.0][:max_steps]


@st.composite
def any_settings(draw):
    schedule = draw(st.sampled_from(NAMES))
    max_steps = draw(st.integers(1, 200))
    warmup = draw(st.integers(0, max_steps))
    decay = None
    if schedule != "constant" and warmup < max_steps:
        decay = draw(st.none() | st.integers(1, max_steps - warmup))
    lr = draw(st.floats(1e-8, 1.0))
    return TrainingConfig(
        schedule=schedule,
        max_steps=max_steps,
        warmup_steps=warmup,
        decay_steps=decay,
        lr=lr,
        min_lr=draw(st.floats(0, lr)),
    )


@given(any_settings())
def test_rises_in_the_warm_up_falls_after_it_and_stays_in_bounds(settings):
    values, warmup = rates(settings, settings.max_steps + 5), settings.warmup_steps
    assert all(before < after for before, after in pairwise(values[:warmup]))
    tolerance = 1e-15 * settings.lr  # a float's rounding
    decaying = values[max(warmup - 1, 0) :]
    assert all(after <= before + tolerance for before, after in pairwise(decaying))
    assert all(0 < value <= settings.lr + tolerance for value in values[:warmup])
    assert all(settings.min_lr - tolerance <= value <= settings.lr + tolerance for value in values[warmup:])


@given(any_settings())
def test_is_a_function_of_the_step_alone(settings):
    """What a resumed run relies on."""
    backwards = [learning_rate(settings, step) for step in reversed(range(settings.max_steps))]
    assert rates(settings) == backwards[::-1]
