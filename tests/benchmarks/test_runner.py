"""Order, time limit, memory of finished cases, and what a failure becomes."""

import json

import torch

from benchmarks import largest_batch, timing
from benchmarks.runner import Bench, Case, CaseLog, run_cases
from benchmarks.settings import read_config

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


def test_the_largest_micro_batch_is_found_by_halves(monkeypatch):
    monkeypatch.setattr(largest_batch, "_trains", lambda _, config, __: config.training.micro_batch_size <= 43)
    config, gpu = read_config("tiny"), torch.device("cuda")
    assert largest_batch.largest_micro_batch(None, lambda: None, config, gpu) in (42, 43)
    assert largest_batch.largest_micro_batch(None, lambda: None, config.sized(micro_batch=64), gpu) in (42, 43)
    monkeypatch.setattr(largest_batch, "_trains", lambda *_: False)
    assert largest_batch.largest_micro_batch(None, lambda: None, config, gpu) is None
    assert largest_batch.largest_micro_batch(None, lambda: None, config, torch.device("cpu")) is None
