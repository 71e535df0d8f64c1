import io

import pytest
from measurements import measurement, row

from megaselect.comparison.measurement import Answer
from megaselect.comparison.rounds import order, run_rounds
from megaselect.comparison.row import Rounds
from megaselect.errors import ComparisonError

ROWS = [row(name) for name in ("none", "all", "full")]


@pytest.mark.parametrize("count", [1, 2, 7, 8])
@pytest.mark.parametrize("number_of_rounds", [2, 4, 6])
def test_every_row_stands_at_the_same_place_on_average(count, number_of_rounds):
    orders = order(count, number_of_rounds)
    assert all(sorted(one) == list(range(count)) for one in orders)
    for first, second in zip(orders[::2], orders[1::2], strict=True):
        assert {first.index(place) + second.index(place) for place in range(count)} == {count - 1}


def test_later_pairs_of_rounds_begin_elsewhere():
    assert [one[0] for one in order(8, 5)[::2]] == [0, 2, 5]


def run(answers, number_of_rounds=2):
    """Run with children that give `answers`, a list for each row; what was asked, and what was said."""
    asked, said = [], io.StringIO()
    names = {str(one.config.to_dict()): one.name for one in ROWS}

    def ask(job):
        name = names[str(job.config)]
        asked.append((job.round, name, job.with_timeline))
        return answers[name].pop(0)

    found = run_rounds(ROWS, Rounds(number_of_rounds, 2, 1), ask, said.write)
    return found, asked, said.getvalue()


def good(count=2):
    return [Answer(measurement=measurement(number=number)) for number in range(1, count + 1)]


def test_rounds_are_asked_for_one_by_one_and_memory_is_followed_in_the_first():
    found, asked, said = run({"none": good(), "all": good(), "full": good()})
    assert asked == [
        *((1, "none", True), (1, "all", True), (1, "full", True)),
        *((2, "full", False), (2, "all", False), (2, "none", False)),
    ]
    assert [[one.samples[0].round for one in item.rounds] for item in found] == [[1, 2]] * 3
    first, *_ = said.splitlines()
    assert first.startswith("[1/6] round 1, none: 45.0 ms a step, 1000 bytes saved (")
    assert said.count("\n") == 6


def test_a_row_that_fails_is_not_tried_again_and_the_others_go_on():
    found, asked, said = run({"none": good(), "all": [Answer(failure="out of memory")], "full": good()})
    assert [name for _, name, _ in asked] == ["none", "all", "full", "full", "none"]
    assert [(item.failure, len(item.rounds)) for item in found] == [(None, 2), ("out of memory", 0), (None, 2)]
    assert "[2/6] round 1, all: out of memory (" in said


def test_what_would_stop_every_row_stops_the_comparison():
    with pytest.raises(ComparisonError, match=r"^no such data$"):
        run({"none": [Answer(failure="no such data", shared=True)]})


def test_a_comparison_in_which_nothing_trains_is_an_error():
    failing = {name: [Answer(failure=f"{name} is out of memory")] for name in ("none", "all", "full")}
    with pytest.raises(ComparisonError, match=r"^no setting trains; none: none is out of memory$"):
        run(failing)


def test_snapshots_are_asked_for_once_a_row_under_names_of_their_own(tmp_path):
    plan = Rounds(2, 2, 1, snapshot_dir=tmp_path)
    jobs = [row(name).job(plan, number) for number in (1, 2) for name in ("fused all", "full")]
    assert [job.snapshot_path and job.snapshot_path.removeprefix(f"{tmp_path}/") for job in jobs] == [
        "memory-fused-all.pickle",
        "memory-full.pickle",
        None,
        None,
    ]
