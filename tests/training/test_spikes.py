"""Loss spikes: told once where they begin, never of a run's own noise, and the same after a resumption."""

import json
import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from megaselect.training.spikes import CALM_STEPS, HISTORY_STEPS, MIN_HISTORY_STEPS, WINDOW_STEPS, SpikeDetector

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
import poison

CURVE = json.loads((Path(__file__).parent / "tiny_loss_curve.json").read_text())["losses"]


def spikes_in(losses, detector=None):
    """Places at which a spike is told of."""
    detector = detector or SpikeDetector()
    return [place for place, loss in enumerate(losses) if detector.update(loss)]


def noise(count, mean=3.0, deviation=0.05, seed=0):
    generator = random.Random(seed)
    return [generator.gauss(mean, deviation) for _ in range(count)]


def test_a_real_noisy_run_has_none():
    """Its largest step up is more than 1.6, in the noise of small batches."""
    assert max(after - before for before, after in pairwise(CURVE[MIN_HISTORY_STEPS:])) > 1.6
    assert spikes_in(CURVE) == []


def test_spikes_put_into_the_real_run_are_found_where_they_are():
    places, losses = [150, 220, 290], list(CURVE)
    for place in places:
        losses[place] *= 2.5
    assert spikes_in(losses) == places


def test_long_noise_has_none():
    """Seven deviations: one step in 10^11."""
    assert spikes_in(noise(20_000)) == []


def test_what_is_said():
    detector = SpikeDetector([2.0] * 40)
    assert str(detector.update(3.14159)) == "loss spike: 3.142 after 2 (median of the last 40)"


def test_small_moves_of_a_loss_that_stands_still_are_none():
    assert spikes_in([0.5] * 30 + [0.524]) == []
    assert spikes_in([0.5] * 30 + [0.526]) == [30]


def test_too_short_a_history_says_nothing():
    short, enough = [3.0] * (MIN_HISTORY_STEPS - 1), [3.0] * MIN_HISTORY_STEPS
    assert spikes_in([*short, 30.0]) == []
    assert spikes_in([*enough, 30.0]) == [MIN_HISTORY_STEPS]


@pytest.mark.parametrize("level", [3.3, 3.45, 4.0, 10.0])
def test_a_new_level_is_one_spike(level):
    """Also one so near the threshold that the noise takes single losses over it and back."""
    losses = noise(200) + noise(300, level, seed=1)
    found = spikes_in(losses)
    assert len(found) == 1
    assert 200 <= found[0] < 200 + CALM_STEPS


def test_a_new_level_becomes_what_spikes_are_told_from():
    assert spikes_in([*noise(200), *noise(200, 4.0, seed=1), 5.0]) == [200, 400]


def test_a_hump_of_many_steps_is_one_and_the_next_one_another():
    losses = noise(400)
    for first in (100, 300):
        for place in range(first, first + 10):
            losses[place] += 2
    assert spikes_in(losses) == [100, 300]


def test_a_fall_is_none():
    assert spikes_in(noise(100) + noise(100, 1.0)) == []


def test_a_history_of_the_last_steps_is_as_good_as_all():
    generator = random.Random(5)
    losses = [loss + (generator.uniform(0.2, 0.5) if generator.random() < 0.05 else 0) for loss in noise(1500)]
    whole = spikes_in(losses)
    assert len(whole) > 15
    assert any(after - before <= WINDOW_STEPS for before, after in pairwise(whole))
    for cut in range(1, len(losses), 13):
        resumed, end = SpikeDetector(losses[max(cut - HISTORY_STEPS, 0) : cut]), cut + 2 * WINDOW_STEPS
        found = [cut + place for place in spikes_in(losses[cut:end], resumed)]
        assert found == [place for place in whole if cut <= place < end]


def test_a_resumed_run_tells_of_the_same_spikes(run_here, read_metrics, capsys, monkeypatch, tmp_path):
    """The resumed one alone would have too short a history for the second."""
    for step in (21, 54):
        poison.in_runs(monkeypatch, "", 2 * (step - 1), lambda loss: 9 * loss)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = ("--training.global-batch-size", 2, "--training.save-interval", 40, "--training.eval-interval", 0)
    for run_dir, steps in ((whole, 55), (parts, 40), (parts, 55)):
        capsys.readouterr()
        assert run_here("--max-steps", steps, *flags, "--training.sample-tokens", 0, "--run-dir", run_dir) == 0
    found = [[line["step"] for line in read_metrics(run_dir) if line.get("loss_spike")] for run_dir in (whole, parts)]
    assert found == [[21, 54], [21, 54]]
    output = capsys.readouterr().out
    assert "step 54: loss spike: " in output
    assert output.count("loss spike: ") == 1
