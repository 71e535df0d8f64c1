"""A run that is told to stop while it evaluates does so within a micro-batch, and goes on when it is called again."""

import codecs
import os
import pty
import re
import select
import signal
import time

import pytest

PATIENCE_SECONDS = 600
SAMPLES = 250_000  # which would take longer than that by far
STEPS = ("--max-steps", 3, "--training.sample-tokens", 0)


@pytest.fixture(scope="module")
def large(write_dataset, tmp_path_factory):
    """Prefix of a dataset of 250,000 samples."""
    return write_dataset(tmp_path_factory.mktemp("large") / "tokens", SAMPLES * 16 + 1)


class Terminal:
    """What a run writes to a terminal, as far as it has been read."""

    def __init__(self, server):
        self.server = server
        self.master, self.slave = pty.openpty()
        self.shown = ""
        self.decode = codecs.getincrementaldecoder("utf-8")().decode  # a read may end within a character

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self.slave)
        os.close(self.master)

    def read_until(self, wanted):
        """Up to where the text comes, or to the end of the run where None is wanted."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while wanted is None or wanted not in self.shown:
            ready, _, _ = select.select([self.master, self.server], [], [], deadline - time.monotonic())
            assert ready, f"it has not come: {self.shown}"
            if self.master not in ready:  # the run has ended, and all that it wrote is read
                assert wanted is None, self.shown
                return
            self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.decode(os.read(self.master, 2**16)))


@pytest.fixture
def stop_in_evaluation(server, small_flags, tmp_path):
    """`stop_in_evaluation(split, number, *flags)`: exit code and output of a run that gets the signal in there."""

    def stop(split, number, *flags):
        with Terminal(server) as terminal:
            place = {"out": os.ttyname(terminal.slave), "environment": {"TERM": "xterm"}}
            run = server.start(["train", *small_flags, *flags], tmp_path / "stopped", **place)
            try:
                terminal.read_until(f"evaluating on the {split} split: ")
                os.kill(run, number)
                terminal.read_until(None)
            finally:
                if not server.has_ended():
                    os.kill(run, signal.SIGKILL)
                ended = server.wait()
            return ended, " ".join(terminal.shown.split()), server.log(tmp_path / "stopped").read_text()

    return stop


def results(metrics):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in metrics]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_in_validation(stop_in_evaluation, run_here, read_metrics, large, tmp_path, capsys, number, code):
    """The step is saved and its metrics say nothing of the evaluation; the run goes on to the same bits."""
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    flags = ("--data.valid-prefix", large, *STEPS, "--max-steps", 5)
    ended, output, errors = stop_in_evaluation(
        "valid", number, *flags, "--training.eval-samples", SAMPLES, "--run-dir", stopped
    )
    assert (ended, errors) == (code, "")
    assert "step 3: the evaluation on the valid split was stopped and not recorded" in output
    assert f"interrupted by {number.name}" in output
    assert "valid loss" not in output
    metrics = read_metrics(stopped)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert all("valid_loss" not in line for line in metrics)
    assert [path.name for path in stopped.glob("checkpoints/*")] == ["step-00000003"]
    for run_dir in (stopped, whole):
        assert run_here(*flags, "--run-dir", run_dir) == 0
    first, second = read_metrics(stopped), read_metrics(whole)
    assert results(first) == results(second)
    assert first[4]["valid_loss"] == second[4]["valid_loss"]
    assert "training.eval_samples 250000 -> 4" in " ".join(capsys.readouterr().out.split())


def test_in_the_test_at_the_end(stop_in_evaluation, run_here, read_metrics, large, dataset, tmp_path, capsys):
    """All steps are done and saved, where nothing else would have saved them; the next call tests from the start."""
    flags = (*STEPS, "--training.save-interval", 0, "--run-dir", tmp_path)
    ended, output, errors = stop_in_evaluation("test", signal.SIGINT, *flags, "--data.test-prefix", large)
    assert (ended, errors) == (130, "")
    assert "step 3: the evaluation on the test split was stopped and not recorded" in output
    assert "interrupted by SIGINT" in output
    assert "test loss" not in output
    metrics = read_metrics(tmp_path)
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert run_here(*flags, "--data.test-prefix", dataset) == 0
    assert re.search(r"test loss +\d\.\d{4}\n", capsys.readouterr().out)
    assert read_metrics(tmp_path) == metrics


def test_a_run_whose_time_is_up_in_an_evaluation_ends_with_the_code_for_it(run_here, large, tmp_path, capsys):
    flags = (*STEPS, "--data.test-prefix", large, "--exit-after", "2s", "--run-dir", tmp_path)
    assert run_here(*flags) == 75
    output = " ".join(capsys.readouterr().out.split())
    assert "interrupted by --exit-after" in output
    assert "test loss" not in output
