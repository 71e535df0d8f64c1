"""A run on a GPU ends in time and loses nothing: real processes hang, die and leave others behind."""

import json
import os
import select

import pytest
from gpu_children import CONFTEST, HANGS, RUNNER, TESTS, python

from benchmarks.gpu.benchmark import Benchmark
from benchmarks.gpu.child import Child
from benchmarks.gpu.parts import Clock, Part, run_parts
from benchmarks.gpu.suite import Results, Suite
from benchmarks.runner import Case

LONG = 120.0  # seconds: an upper bound that no passing test comes near


class Pipe:
    """A named pipe: `begun` waits for the first word, `is_closed` for the end of all processes that hold it."""

    def __init__(self, path):
        os.mkfifo(path)
        self.path, self._reader = path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self):
        assert select.select([self._reader], [], [], LONG)[0]
        return os.read(self._reader, 100)

    def begun(self):
        return self.read() == b"begun"

    def is_closed(self):
        return self.read() == b""


@pytest.fixture
def pipe(tmp_path):
    return Pipe(tmp_path / "pipe")


@pytest.mark.parametrize(("seconds", "silence", "why"), [(1, LONG, "limit of 1 s"), (LONG, 1, "1 s without a word")])
def test_a_child_is_killed_with_all_that_it_started_and_its_words_are_kept(tmp_path, pipe, seconds, silence, why):
    child = Child("part", python(HANGS, pipe.path), tmp_path / "log")
    assert pipe.begun()
    found = child.wait(seconds, silence)
    assert why in found.why
    assert found.code == -9
    assert pipe.is_closed()
    assert (tmp_path / "log").read_text() == "[part] partial result\n"


def test_what_a_child_leaves_running_ends_with_it(tmp_path, pipe):
    found = Child("part", python(HANGS.rpartition("threading.Event")[0], pipe.path), tmp_path / "log").wait(LONG)
    assert (found.code, found.why) == (0, "")
    assert pipe.begun()
    assert pipe.is_closed()


def test_every_part_runs_whatever_became_of_those_before_it(tmp_path, pipe):
    log, reports = tmp_path / "log", []
    states = [("waiting",) * 4]

    def hang(clock):
        return Child("hangs", python(HANGS, pipe.path), log).wait(clock.left()).in_words

    def fail(_):
        raise RuntimeError("no GPU")

    def work(_):
        states.append(tuple(part.state for part in parts))
        assert Child("works", python("print('whole result')"), log).wait(LONG).code == 0
        return "well"

    parts = [
        Part("hangs", "", 5.0, hang),
        Part("fails", "", LONG, fail),
        Part("works", "", LONG, work),
        Part("late", "", 1.0, work),
    ]
    run_parts(parts, Clock(LONG), lambda: reports.append([part.row() for part in parts]))
    assert log.read_text() == "[hangs] partial result\n[works] whole result\n"
    assert [(row["part"], row["state"], row["note"]) for row in reports[-1]] == [
        ("hangs", "done", "stopped at its limit of 5 s"),
        ("fails", "failed", "RuntimeError: no GPU"),
        ("works", "done", "well"),
        ("late", "not run", "1 s were left"),
    ]
    assert states[1:] == [("done", "failed", "interrupted", "waiting")]
    assert [[row["state"] for row in report] for report in reports[:3]] == [
        ["waiting"] * 4,
        ["done", "waiting", "waiting", "waiting"],
        ["done", "failed", "waiting", "waiting"],
    ]


def test_a_benchmark_goes_on_behind_what_hangs_dies_or_loses_the_gpu(tmp_path):
    keys = ["first", "dies", "loses the GPU", "hangs", "last"]
    cases = [Case(key, lambda _: [], 1.0) for key in keys]
    benchmark = Benchmark(tmp_path / "headline.json", tmp_path / "log", os.environ, (), ("-c", RUNNER), silence=3.0)
    assert benchmark.run("headline", cases, Clock(LONG)) == "started 4 times"
    assert [row["case"] for row in benchmark.rows(cases)] == ["first", "loses the GPU", "last"]


def test_a_benchmark_that_cannot_run_says_so(tmp_path):
    def run(code):
        benchmark = Benchmark(tmp_path / "headline.json", tmp_path / "log", os.environ, (), ("-c", code))
        benchmark.run("headline", [Case("first", lambda _: [], 1.0)], Clock(LONG))

    with pytest.raises(RuntimeError, match="cannot run: see log"):
        run("import sys; sys.exit(2)")
    with pytest.raises(RuntimeError, match="ended by signal 6 before the first case"):
        run("import os; os.abort()")


def test_a_suite_goes_on_behind_tests_that_hang_die_or_lose_the_gpu(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    path = tmp_path / "test_on_gpu.py"
    path.write_text(TESTS)
    options = ("-m", "cuda", "--rootdir", str(tmp_path), "-c", os.devnull)
    suite = Suite(tmp_path, tmp_path / "tests.jsonl", tmp_path / "log", os.environ, options, 5.0, tmp_path)
    assert suite.collect([str(path)]).wait(LONG).code == 0
    tests = suite.collected()
    assert len(tests) == 9
    suite.run(tests, Clock(LONG), 1)
    outcomes = Results(suite.results).read().outcomes
    assert {test.partition("::")[2]: record["outcome"] for test, record in outcomes.items()} == {
        **{f"test_passes[{number}]": "passed" for number in range(3)},
        "test_loses_the_gpu": "failed",
        "test_dies": "crashed",
        "test_hangs": "hung",
        "test_fails": "failed",
        "test_skips": "skipped",
        "test_last": "passed",
    }
    by_name = {test.partition("::")[2]: record for test, record in outcomes.items()}
    assert by_name["test_fails"]["why"] == "AssertionError: as it should"
    assert by_name["test_skips"]["why"].endswith("for a reason")
    assert by_name["test_dies"]["why"] == "ended by signal 6"
    lost = [json.loads(line)["lost"] for line in suite.results.read_text().splitlines() if '"lost"' in line]
    assert [test.partition("::")[2] for test in lost] == ["test_loses_the_gpu"]  # the next to fail has another process
