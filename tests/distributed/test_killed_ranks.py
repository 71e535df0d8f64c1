"""Any rank may be killed by SIGKILL at any moment: one line names it, and the run goes on to the same bits."""

import os
import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from launched_runs import assert_same_run

STEPS = 6
KILLS = int(os.environ.get("MEGASELECT_SOAK_KILLS", "16"))  # of each of the seven soaks
END_SECONDS = 29.0  # from the kill to the end of the last rank: torchrun, which waits 30, ends none without a word
LINE = re.compile(
    r"error: (rank (?P<gone>\d) \(process \d+ on \S+\) ended without a word, as a process does that is killed"
    r"|rank (?P<absent>\d) of \d never came): start the ranks again, and the run goes on from its last checkpoint "
    r"\(torchrun --max-restarts does so by itself\)"
)
SETTINGS = {
    "two ranks": (2, ()),
    "three ranks": (3, ("--recompute", "selective", "--parallel.sharding", "gradients")),
    "replicas": (4, ("--parallel.replicas", "2")),
    "whole models": (2, ("--parallel.sharding", "none", "--recompute", "full")),
}


class Whole(NamedTuple):
    """A run that nobody killed: its directory, and how long it took."""

    run_dir: Path
    seconds: float


@pytest.fixture(scope="module")
def arguments(run_arguments):
    """Saves that take as long as the steps between them, so that many kills meet one."""
    return (*run_arguments, "--max-steps", str(STEPS), "--training.save-interval", "1")


@pytest.fixture(scope="module")
def whole(launcher, arguments, tmp_path_factory):
    """By the name of a setting; its ranks are as many as its killed runs have."""
    done = {}

    def run(setting):
        if setting not in done:
            ranks, flags = SETTINGS[setting]
            directory = tmp_path_factory.mktemp("whole")
            started = time.monotonic()
            assert launcher.run([*arguments, *flags, "--run-dir", "run"], directory, ranks).codes == [0] * ranks
            done[setting] = Whole(directory / "run", time.monotonic() - started)
        return done[setting]

    return run


def moment(draw, ranks, whole, collectives=200):
    """When a rank is killed: at a time, or in a collective, in which the others then are."""
    rank = draw.randrange(ranks)
    if draw.random() < 0.3:
        return {"rank": rank, "collective": draw.randrange(collectives)}
    return {"rank": rank, "seconds": draw.uniform(0, 0.8 * whole.seconds)}


def check_start(start, kill, lines, met):
    """What one start left behind that was killed, or was done before: its lines, one or none, are taken off."""
    codes = start["codes"]
    if not any(codes):
        met["not met: the run was done"] += 1
        return
    assert codes[kill["rank"]] == -9
    # 2: told, or told by another; 0: had done its part before the other was killed; 143, -15: asked to end at its start
    assert {code for rank, code in enumerate(codes) if rank != kill["rank"]} <= {0, 2, 143, -15}, codes
    assert start["seconds"] < END_SECONDS
    if 2 in codes:
        line = lines.pop(0)
        told = LINE.fullmatch(line)
        assert told, line
        assert int(told["gone"] or told["absent"]) == kill["rank"]
        met["told"] += 1
    else:
        met["with nobody left to tell"] += 1


def check(run, drawn, met):
    lines = run.lines
    for start, kill in zip(run.starts, drawn, strict=False):
        check_start(start, kill, lines, met)
    assert lines == []


def start_again_by_torchrun(launcher, command, directory, setting, drawn, met):
    """Three times; the run names no directory."""
    ranks, flags = SETTINGS[setting]
    run = launcher.run([*command, *flags], directory, ranks, restarts=len(drawn), kills=drawn)
    check(run, drawn, met)
    assert run.codes == [0] * ranks


def start_again_by_hand(launcher, command, directory, setting, drawn, met):
    """The last time, to the end, on 1, 2, 3 and 4 ranks in turn, whatever they were."""
    ranks, flags = SETTINGS[setting]
    command = [*command, *flags, "--run-dir", "run"]
    for kill in drawn:
        check(launcher.run(command, directory, ranks, kills=[kill]), [kill], met)
    others = sum(met.values()) // len(drawn) % 4 + 1
    assert launcher.run(command, directory, others).codes == [0] * others


def kill_at_random(launcher, arguments, whole, tmp_path, setting, kills, start_again):
    """Runs killed and started again until they are done, until so many kills: how many there were."""
    seed = random.randrange(2**32)
    print(f"moments drawn with seed {seed}")
    draw, met, runs = random.Random(seed), Counter(), 0
    expected = whole(setting)
    while met["told"] + met["with nobody left to tell"] < kills:
        directory = tmp_path / f"run{runs}"
        directory.mkdir()
        drawn = [moment(draw, SETTINGS[setting][0], expected) for _ in range(3)]
        start_again(launcher, arguments, directory, setting, drawn, met)
        (metrics,) = directory.glob("**/metrics.jsonl")
        assert_same_run(metrics.parent, expected.run_dir)
        runs += 1
    print(f"{dict(met)} over {runs} runs")
    return met["told"] + met["with nobody left to tell"]


@pytest.mark.parametrize(
    "start_again", [start_again_by_torchrun, pytest.param(start_again_by_hand, marks=pytest.mark.soak)]
)
def test_killed_at_random_moments(launcher, arguments, whole, tmp_path, start_again):
    assert kill_at_random(launcher, arguments, whole, tmp_path, "two ranks", 2, start_again) >= 2


@pytest.mark.parametrize("rank", [0, 1])
def test_killed_in_the_last_save_which_nothing_follows(launcher, arguments, whole, tmp_path, rank):
    """The rank that is left waits for the other's part, and in no collective."""
    met = Counter()
    start_again_by_torchrun(launcher, arguments, tmp_path, "two ranks", [{"rank": rank, "save": STEPS}], met)
    assert met == {"told": 1}
    (metrics,) = tmp_path.glob("**/metrics.jsonl")
    assert_same_run(metrics.parent, whole("two ranks").run_dir)


@pytest.mark.soak
@pytest.mark.parametrize("setting", SETTINGS)
def test_killed_at_many_random_moments(launcher, arguments, whole, tmp_path, setting):
    assert kill_at_random(launcher, arguments, whole, tmp_path, setting, KILLS, start_again_by_torchrun) >= KILLS


@pytest.mark.soak
@pytest.mark.parametrize("setting", ["two ranks", "three ranks", "whole models"])
def test_killed_at_many_random_moments_and_started_again_by_hand(launcher, arguments, whole, tmp_path, setting):
    assert kill_at_random(launcher, arguments, whole, tmp_path, setting, KILLS, start_again_by_hand) >= KILLS
