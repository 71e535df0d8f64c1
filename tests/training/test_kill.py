"""A run may be killed by SIGKILL at any moment: it loses no whole checkpoint, and goes on to the same bits."""

import random
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from forked_runs import lasting_metrics
from safetensors.torch import load_file

STEPS = 16
# Saves that take as long as the steps between them, so that many kills meet one.
RUN = (
    *(
        "--model.hidden-size",
        "64",
        "--model.vocab-size",
        "2048",
        "--max-steps",
        str(STEPS),
        "--training.warmup-steps",
        "2",
    ),
    *("--training.save-interval", "1", "--training.eval-interval", "3", "--training.sample-tokens", "0"),
    *("--recompute", "selective"),
)


@pytest.fixture(scope="module")
def arguments(small_flags):
    return lambda run_dir: ["train", *small_flags, *RUN, "--run-dir", str(run_dir)]


class Whole(NamedTuple):
    """A run that nobody killed: its directory, how long it took, how often it changed something there."""

    run_dir: Path
    seconds: float
    changes: int


@pytest.fixture(scope="module")
def whole(server, arguments, tmp_path_factory):
    for number in range(2):  # the second one has its files in the page cache, as have those that follow
        run_dir = tmp_path_factory.mktemp("whole") / f"run{number}"
        started = time.monotonic()
        assert server.run(arguments(run_dir), run_dir) == 0
        seconds = time.monotonic() - started
    changes = int(server.log(run_dir).read_text().split()[-2])
    return Whole(run_dir, seconds, changes)


def newest(run_dir):
    """Step of the newest checkpoint, 0 where there is none."""
    return max((int(path.name[5:]) for path in (run_dir / "checkpoints").glob("step-*")), default=0)


def unfinished(run_dir):
    return any((run_dir / "checkpoints").glob(".step-*"))


def assert_the_same_run(run_dir, whole_dir):
    assert lasting_metrics(run_dir) == lasting_metrics(whole_dir)
    last = f"checkpoints/step-{STEPS:08d}"
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors, expected = load_file(run_dir / last / name), load_file(whole_dir / last / name)
        assert tensors.keys() == expected.keys()
        assert [key for key in tensors if not tensors[key].equal(expected[key])] == []


def kill_at_random(server, arguments, whole, tmp_path, kills):
    """Runs killed and started again until they are done, until so many kills; what the kills met."""
    seed = random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    draw, met, runs = random.Random(seed), {"saving": 0, "elsewhere": 0}, 0
    while sum(met.values()) < kills:
        run_dir, code = tmp_path / f"run{runs}", None
        runs += 1
        while code != 0:
            before = newest(run_dir)
            code = server.run(arguments(run_dir), run_dir, seconds=draw.uniform(0, 0.8 * whole.seconds))
            assert newest(run_dir) >= before
            if code:
                met["saving" if unfinished(run_dir) else "elsewhere"] += 1
        assert_the_same_run(run_dir, whole.run_dir)
    print(f"{sum(met.values())} kills over {runs} runs, {met['saving']} of them while a checkpoint was being written")
    return met


def test_killed_at_random_moments(server, arguments, whole, tmp_path):
    met = kill_at_random(server, arguments, whole, tmp_path, kills=8)
    assert sum(met.values()) >= 8  # so few may all miss a save


@pytest.mark.soak
def test_killed_at_many_random_moments(server, arguments, whole, tmp_path):
    met = kill_at_random(server, arguments, whole, tmp_path, kills=500)
    assert met["saving"] > 0


def check_kill_before_change(server, arguments, whole, run_dir, number):
    """The run that is killed before its change of that number, and is started again, is the same run."""
    assert server.run(arguments(run_dir), run_dir, kill_at=number) < 0
    assert server.run(arguments(run_dir), run_dir) == 0
    assert_the_same_run(run_dir, whole.run_dir)


def test_killed_before_any_of_its_changes(server, arguments, whole, tmp_path):
    """From one change to the next a run is as it would be after any moment between them."""
    seed = random.randrange(2**32)
    print(f"changes drawn with seed {seed}")
    for number in random.Random(seed).sample(range(whole.changes), 3):
        check_kill_before_change(server, arguments, whole, tmp_path / f"run{number}", number)


@pytest.mark.soak
def test_killed_before_each_of_its_changes(server, arguments, whole, tmp_path):
    for number in range(whole.changes):
        check_kill_before_change(server, arguments, whole, tmp_path / f"run{number}", number)
