"""Signals that reach all ranks, as torchrun passes on what it gets: saved once, and every rank's exit code says why."""

import pytest
from launched_runs import last_tensors, lasting_metrics


@pytest.fixture
def stopped(launcher, run_arguments, tmp_path):
    """stopped(seconds, *names) is a run without end that all these signals reach after so many seconds."""

    def run(seconds, *names):
        flags = ("--max-steps", "100000", "--training.eval-interval", "0", "--run-dir", "run")
        kill = {"signals": names, "seconds": seconds}
        return launcher.run([*run_arguments, *flags], tmp_path, kills=[kill])

    return run


# torchrun sends on the SIGINT that a terminal has sent to the ranks too.
@pytest.mark.parametrize(("names", "code"), [(["SIGTERM"], 143), (["SIGINT", "SIGINT"], 130), (["SIGHUP"], 129)])
def test_a_signal_ends_the_run_after_a_step_that_is_saved(stopped, tmp_path, names, code):
    run = stopped({"file": "run/metrics.jsonl", "bytes": 1}, *names)  # after a step, which all ranks have taken
    # Of a rank that is done a little later the launcher's SIGTERM may end the process; what it saved is compared below.
    assert sorted(run.codes, reverse=True) in ([code, code], [code, -15]), run
    assert run.lines == []
    step, _ = last_tensors(tmp_path / "run")
    assert step == len(lasting_metrics(tmp_path / "run")) > 0
    assert run.out.count("goes on") == 1


@pytest.mark.parametrize(("name", "code", "lines"), [("SIGTERM", 143, []), ("SIGINT", 130, ["interrupted"])])
def test_a_signal_before_the_first_step_ends_the_run_at_once(stopped, tmp_path, name, code, lines):
    """The lock is the first that a run leaves behind; nothing of it stays."""
    run = stopped({"file": "run/.lock", "bytes": 0}, name)
    assert (set(run.codes), run.lines) == ({code}, lines)
