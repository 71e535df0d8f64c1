"""Order, time limit, memory of finished cases, and what a failure becomes."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import attention_cases, families, largest_batch, runner, step_cases, timing
from benchmarks.configs import read_config
from benchmarks.runner import Bench, Case, CaseLog, run_cases
from benchmarks.settings import BenchmarkSetting

CODE = {"device": "cpu", "torch": "2", "sources": "a"}


def bench():
    return Bench(torch.device("cpu"), 1, 0.01)


def case(name, seconds=0.0, ran=None):
    def run(_):
        if ran is not None:
            ran.append(name)
        return [{"contender": name, "status": "ok", "reason": ""}]

    return Case(name, run, seconds)


def test_a_finished_case_is_skipped_by_the_next_start(tmp_path):
    path, ran = tmp_path / "cases.jsonl", []
    run_cases([case("a", ran=ran)], bench(), CaseLog(path, CODE), 1)
    outcome = run_cases([case("a", ran=ran), case("b", ran=ran)], bench(), CaseLog(path, CODE), 1)
    assert ran == ["a", "b"]
    assert outcome.reused == 1
    assert [row["case"] for row in outcome.rows] == ["a", "b"]


def test_figures_of_other_code_are_not_mixed_in(tmp_path):
    path, ran = tmp_path / "cases.jsonl", []
    run_cases([case("a", ran=ran)], bench(), CaseLog(path, CODE), 1)
    log = CaseLog(path, {**CODE, "sources": "b"})
    run_cases([case("a", ran=ran)], bench(), log, 1)
    assert ran == ["a", "a"]
    assert log.foreign == 1


def test_what_ended_the_process_twice_is_left_out(tmp_path):
    path = tmp_path / "cases.jsonl"
    line = json.dumps({"case": "a", "begun": True, "fingerprint": CODE})
    path.write_text(f'{line}\n{line}\n{{"case": "b", "beg')
    log = CaseLog(path, CODE)
    outcome = run_cases([case("a"), case("b")], bench(), log, 1)
    assert list(outcome.left_out) == ["a"]
    assert [row["case"] for row in outcome.rows] == ["b"]
    assert "b" in CaseLog(path, CODE).finished  # the line that was cut off did no harm


def test_no_case_begins_that_would_not_end_in_time():
    outcome = run_cases([case("long", 90), case("short", 30)], bench(), CaseLog(None, CODE), 1)
    assert [row["case"] for row in outcome.rows] == ["short"]
    assert outcome.left_out["long"].startswith("takes up to 90 s, and ")


def test_short_memory_is_a_result():
    def exhausted(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.\nand more")

    def broken(_):
        raise RuntimeError("no kernel")

    outcome = run_cases([Case("x", exhausted, 0), Case("y", broken, 0)], bench(), CaseLog(None, CODE), 1)
    assert [(row["status"], row["reason"]) for row in outcome.rows] == [
        ("oom", "OutOfMemoryError: CUDA out of memory. Tried to allocate 80 GiB."),
        ("error", "RuntimeError: no kernel"),
    ]


def test_quantiles():
    assert timing.quantiles([5.0]) == (5, 5, 5)
    assert timing.quantiles([4.0, 1.0, 2.0, 3.0, 5.0, 6.0]) == (2, 3.5, 5)


def test_turns_rotate_and_one_failure_ends_one_contender():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}

    def fail():
        raise RuntimeError("no")

    results = timing.take_turns({**runs, "c": fail}, timing.Stopwatch(torch.device("cpu")), 2, 0.0)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b", "b", "a"]
    assert [len(results[name].milliseconds) for name in "abc"] == [2, 2, 0]
    assert (results["c"].status, results["c"].reason) == ("error", "RuntimeError: no")


@pytest.fixture
def clock(monkeypatch):
    """The host's clock, from which times are taken: it stands still but for what a test puts it on by."""
    hands = SimpleNamespace(now=0.0)
    monkeypatch.setattr("megaselect.training.phases.time", SimpleNamespace(perf_counter=lambda: hands.now))
    return hands


def test_what_a_failed_step_has_timed_is_nobody_elses(clock):
    def stumble():
        clock.now += 1
        raise RuntimeError("no")

    marks = timing.Clock(torch.device("cpu"))
    batch, optimizer = None, SimpleNamespace(backward=lambda _: stumble(), step=lambda _: None)
    family = SimpleNamespace(loss=lambda _: None, optimizer=optimizer, learning_rate=0.1)
    with pytest.raises(RuntimeError):
        step_cases.step(family, batch, marks)
    optimizer.backward = lambda _: None
    assert step_cases.step(family, batch, marks) == [0, 0, 0]


def test_one_that_fails_in_a_later_round_ends_alone(clock):
    calls = iter(range(100))

    def wears_out():
        if next(calls) >= 4:  # after three to warm up and the first round
            clock.now += 1
            raise torch.OutOfMemoryError("full")

    results = timing.take_turns({"b": wears_out, "a": lambda: None}, timing.Stopwatch(torch.device("cpu")), 3, 0.0)
    assert (results["b"].status, results["b"].milliseconds) == ("oom", [])
    # The other's last moments are not among its times.
    assert (results["a"].status, results["a"].milliseconds) == ("ok", [0, 0, 0])


def test_what_made_the_gpu_fail_is_not_tried_again(tmp_path, monkeypatch):
    path, tried = tmp_path / "cases.jsonl", []

    def fail():
        tried.append("bad")
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def run(bench):
        rows = []
        for name, work in (("good", lambda: tried.append("good")), ("bad", fail), ("late", lambda: None)):
            status, reason = bench.attempt(name, work)
            rows.append({"contender": name, "status": status, "reason": reason})
        return rows

    cases = [Case("a", run, 0), case("b")]
    monkeypatch.setattr(runner, "works", lambda _: "bad" not in tried)
    outcome = run_cases(cases, bench(), CaseLog(path, CODE), 1)
    assert outcome.lost
    assert outcome.rows == []
    assert outcome.left_out.keys() == {"a", "b"}
    assert "the GPU failed in bad: RuntimeError: CUDA error" in outcome.left_out["a"]
    assert CaseLog(path, CODE).begun["a"] == 0  # such a start is none of those after which a case is left alone

    tried.clear()  # another process, whose GPU works
    outcome = run_cases(cases, bench(), CaseLog(path, CODE), 1)
    assert not outcome.lost
    assert outcome.left_out == {}
    assert tried == ["good"]
    assert [row["status"] for row in outcome.rows] == ["ok", "error", "ok", "ok"]
    assert "illegal memory access" in outcome.rows[1]["reason"]
    assert run_cases(cases, bench(), CaseLog(path, CODE), 1).reused == 2


def test_a_case_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.0)
    path = tmp_path / "cases.jsonl"
    endless = Case("endless", lambda bench: [bench.attempt("x", lambda: time.sleep(600))], 0)
    outcome = run_cases([case("a"), endless, case("b")], bench(), CaseLog(path, CODE), 2 / 60)
    assert [row["case"] for row in outcome.rows] == ["a"]
    assert outcome.left_out == dict.fromkeys(("endless", "b"), "the time was up while a case ran")
    assert set(CaseLog(path, CODE).finished) == {"a"}


def test_cases_of_one_name_that_measure_other_things_are_told_apart(tmp_path):
    path, ran = tmp_path / "cases.jsonl", []
    one, two = (dataclasses.replace(case("a", ran=ran), spec=spec) for spec in ("one", "two"))
    for item in (one, two, two):
        run_cases([item], bench(), CaseLog(path, CODE), 1)
    assert len(ran) == 2


def test_the_largest_micro_batch_is_found_by_halves():
    def upto(limit):
        return lambda size: "" if size <= limit else "memory is short"

    for start in (1, 8, 64):
        size, reason = largest_batch.largest_micro_batch(upto(43), start)
        assert size in (41, 42, 43)
        assert reason == "memory is short"
    assert largest_batch.largest_micro_batch(upto(0), 8) == (0, "memory is short")


def test_every_setting_has_its_largest_micro_batch(monkeypatch):
    config = read_config("tiny", {"model.num_layers": 1}).sized(16, 1)
    settings = [BenchmarkSetting("fused", name) for name in ("none", "all", "full")]
    limits = iter((5, None, 12))

    def trains(family, config, device, size):
        limit = current[-1]
        if limit is None:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return "" if size <= limit else "memory is short"

    current = []
    monkeypatch.setattr(step_cases.Contender, "prepare", lambda _: current.append(next(limits)))
    monkeypatch.setattr(largest_batch, "trains", trains)
    made = largest_batch.largest_case("largest", config, settings, torch.float32, 0)
    rows = run_cases([made], bench(), CaseLog(None, CODE), 1).rows
    assert [(row["contender"], row["status"], row.get("largest_micro_batch")) for row in rows] == [
        ("fused none", "ok", 5), ("fused all", "error", None), ("fused full", "ok", 12),
    ]  # fmt: skip
    assert rows[1]["reason"] == "RuntimeError: CUDA error: unspecified launch failure"


def test_a_step_that_does_not_train_says_why(monkeypatch):
    def short(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(_):
        raise RuntimeError("too large for int32")

    cpu, config = torch.device("cpu"), read_config("tiny", {"model.num_layers": 1}).sized(16, 1).config
    family = families.megaselect_family(config, [BenchmarkSetting("fused", "all")], cpu, torch.float32)
    family.variants["fused all"]()
    assert largest_batch.trains(family, config, cpu, 1) == ""
    family.loss = short
    assert largest_batch.trains(family, config, cpu, 2) == "memory is short"
    family.loss = broken
    assert largest_batch.trains(family, config, cpu, 2) == "RuntimeError: too large for int32"
    monkeypatch.setattr(largest_batch, "works", lambda _: False)
    with pytest.raises(RuntimeError):  # the case ends there: nothing else could run
        largest_batch.trains(family, config, cpu, 2)


def test_deterministic_attention_is_asked_for_in_earnest():
    with attention_cases._deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # which would leave flash's backward as it is
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
