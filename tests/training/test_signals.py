"""Signals and the time limit: a run saves, stops at the end of its step with a code of its own, and can go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from megaselect.training import signals

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
import poison

ALONE = ("--training.sample-tokens", 0, "--training.eval-interval", 0)
NEVER_SAVED = ("--training.save-interval", 0, *ALONE)
PATIENCE_SECONDS, POLL_SECONDS = 600, 0.005


@pytest.fixture(autouse=True)
def same_handlers_afterwards():
    """A run gives back the handlers that it found."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture
def in_step(monkeypatch):
    """`in_step(number, act)`: act() is called in the forward pass of that step of every run, counted from 1."""

    def arrange(number, act):
        def hook(output):
            act()
            return output

        poison.in_runs(monkeypatch, "layers.0.mlp", 4 * (number - 1), hook)

    return arrange


def send(*numbers):
    def act():
        for number in numbers:
            os.kill(os.getpid(), number)

    return act


def wait_for(what, is_running=lambda: True):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert is_running(), "the run has ended"
        assert time.monotonic() < deadline, "it has not come"
        time.sleep(POLL_SECONDS)


def saved_steps(run_dir):
    return sorted(int(path.name[5:]) for path in run_dir.glob("checkpoints/step-*"))


def results(metrics):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics]


def test_sigusr1_saves_and_goes_on(run_here, in_step, read_metrics, capsys, tmp_path):
    """Also where the run would never save; the run that goes on from there has the same bits."""
    saved = tmp_path / "checkpoints" / "step-00000002"
    in_step(2, send(signal.SIGUSR1))
    in_step(4, lambda: wait_for(saved.exists))
    assert run_here("--max-steps", 5, *NEVER_SAVED, "--run-dir", tmp_path) == 0
    assert saved_steps(tmp_path) == [2]
    assert capsys.readouterr().out.count("saving step-00000002, as SIGUSR1 asked\n") == 1
    whole = results(read_metrics(tmp_path))
    assert run_here("--max-steps", 5, *NEVER_SAVED, "--run-dir", tmp_path) == 0
    assert results(read_metrics(tmp_path)) == whole
    assert len(whole) == 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_run_after_its_step(run_here, in_step, read_metrics, capsys, tmp_path, number, code):
    in_step(3, send(number))
    assert run_here("--max-steps", 9, *NEVER_SAVED, "--run-dir", tmp_path) == code
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert saved_steps(tmp_path) == [3]
    printed = capsys.readouterr()
    assert (printed.err, "interrupted" in printed.out) == ("", True)


def test_a_second_sigint_ends_the_run_at_once(run_here, in_step, read_metrics, capsys, tmp_path):
    in_step(3, send(signal.SIGINT, signal.SIGINT))
    assert run_here("--max-steps", 9, "--training.save-interval", 2, *ALONE, "--run-dir", tmp_path) == 130
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    assert saved_steps(tmp_path) == [2]
    assert capsys.readouterr().err == "interrupted\n"


def test_a_run_that_is_to_stop_and_to_save_does_both(run_here, in_step, tmp_path):
    in_step(2, send(signal.SIGUSR1, signal.SIGTERM))
    assert run_here("--max-steps", 9, *NEVER_SAVED, "--run-dir", tmp_path) == 143
    assert saved_steps(tmp_path) == [2]


def test_a_run_whose_time_is_up_goes_on_to_the_same_bits(run_here, in_step, read_metrics, monkeypatch, tmp_path):
    """The clock that it looks at is put on by two hours in its third step."""
    parts, whole, done, put_on = tmp_path / "parts", tmp_path / "whole", 3, []
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + sum(put_on)))
    in_step(done, lambda: put_on.append(7200))
    assert run_here("--max-steps", 100, "--exit-after", "1h", *NEVER_SAVED, "--run-dir", parts) == 75
    assert [line["step"] for line in read_metrics(parts)] == [1, 2, 3]
    assert saved_steps(parts) == [done]
    for run_dir in (parts, whole):
        total = ("--max-steps", done + 2, "--training.save-interval", 100_000, *ALONE)
        assert run_here(*total, "--run-dir", run_dir) == 0
    assert results(read_metrics(parts)) == results(read_metrics(whole))
    last = Path("checkpoints", f"step-{done + 2:08d}")
    for name in ("model.safetensors", "optimizer.safetensors"):
        tensors, expected = load_file(parts / last / name), load_file(whole / last / name)
        assert tensors.keys() == expected.keys()
        assert all(tensors[each].equal(expected[each]) for each in tensors)


def test_a_process_hears_signals_from_outside(child_command, child_environment, small_flags, tmp_path):
    def steps():
        return (tmp_path / "metrics.jsonl").read_text().count("\n")

    command = child_command(*small_flags, *NEVER_SAVED, "--max-steps", 100_000, "--run-dir", tmp_path)
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=child_environment, **options) as child:

        def is_running():
            return child.poll() is None

        try:
            wait_for((tmp_path / "metrics.jsonl").exists, is_running)
            child.send_signal(signal.SIGUSR1)
            wait_for((tmp_path / "checkpoints").exists, is_running)
            steps_then = steps()
            wait_for(lambda: steps() > steps_then, is_running)
            child.send_signal(signal.SIGTERM)
            output, errors = child.communicate(timeout=PATIENCE_SECONDS)
        finally:
            child.kill()
    assert (child.returncode, errors) == (143, "")
    assert "interrupted" in output
    first, last = saved_steps(tmp_path)
    assert first < last


def test_a_run_that_ignores_its_terminal_goes_on_without_it(run_here, in_step, tmp_path):
    """As nohup starts it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        in_step(2, send(signal.SIGHUP))
        assert run_here("--max-steps", 3, *NEVER_SAVED, "--run-dir", tmp_path) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
