"""A run's directory: one run at a time, nothing of others overwritten, nothing left of a run that was refused."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import datetime

import pytest

from megaselect.errors import RunDirectoryError
from megaselect.training import run_dir as run_dir_module
from megaselect.training.run_dir import claim_run_dir
from megaselect.training.run_lock import LOCK_NAME, RunLock, is_locked

HOLD = (
    "import sys; from pathlib import Path; from megaselect.training.run_lock import RunLock\n"
    "lock = RunLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
)
FEW_STEPS = ("--max-steps", 2, "--training.sample-tokens", 0, "--training.eval-interval", 0)


@pytest.fixture
def held_elsewhere(child_environment):
    """`with held_elsewhere(directory) as child`: a process of its own holds the directory."""

    @contextmanager
    def hold(directory):
        command = [sys.executable, "-c", HOLD, str(directory)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env=child_environment, text=True, **pipes) as child:
            assert child.stdout.readline() == "held\n"
            yield child
            child.kill()

    return hold


def everything_in(directory):
    """Path -> content and time of change of every file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_second_run_is_refused_and_changes_nothing(run_here, held_elsewhere, capsys, tmp_path):
    run_dir = tmp_path / "run"
    assert run_here(*FEW_STEPS, "--run-dir", run_dir) == 0
    with held_elsewhere(run_dir) as child:
        before, started = everything_in(run_dir), json.loads((run_dir / LOCK_NAME).read_text())["started"]
        for resume in ("auto", "none"):
            capsys.readouterr()
            assert run_here("--max-steps", 4, "--run-dir", run_dir, "--resume", resume) == 2
            assert capsys.readouterr() == (
                "",
                f"error: the run directory {run_dir} is in use by process {child.pid} on {socket.gethostname()}, "
                f"started {started}: wait for it, stop it, or choose another --run-dir\n",
            )
            assert everything_in(run_dir) == before
        assert is_locked(run_dir)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert is_locked(run_dir) is False
        assert run_here(*FEW_STEPS, "--run-dir", run_dir) == 0  # over the file that the killed process left


def test_a_running_run_holds_its_directory_to_its_end(make_config, tmp_path):
    with claim_run_dir(make_config(training__run_dir=str(tmp_path / "run")), "tiny") as home:
        assert is_locked(home.path)
        with pytest.raises(RunDirectoryError, match=f"in use by process {os.getpid()} on "):
            RunLock(home.path)
        home.accepted = True
    assert is_locked(home.path) is False


def test_a_lock_that_says_nothing_holds_too(tmp_path):
    with (tmp_path / LOCK_NAME).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunDirectoryError, match="in use by another process: wait for it"):
            RunLock(tmp_path)


def test_a_look_at_the_lock_does_not_refuse_a_run_that_begins(tmp_path, monkeypatch):
    """The look ends while the run waits before it tries again."""
    RunLock(tmp_path).release()
    with (tmp_path / LOCK_NAME).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        monkeypatch.setattr("megaselect.training.run_lock.time.sleep", lambda _: fcntl.flock(file, fcntl.LOCK_UN))
        lock = RunLock(tmp_path)
        with pytest.raises(BlockingIOError):  # the run has it
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        lock.release()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_taken_again(tmp_path, monkeypatch):
    """The other run ends, and takes its file with it, between this one's open and its flock."""
    first, flock = RunLock(tmp_path), fcntl.flock

    def flock_late(handle, operation):
        monkeypatch.undo()
        first.release(remove=True)
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    second = RunLock(tmp_path)
    assert is_locked(tmp_path)
    second.release()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = RunLock(tmp_path)
    assert "has no locks: see to it that no other run" in lock.note
    assert is_locked(tmp_path) is None
    lock.release()


def test_runs_that_name_no_directory_get_one_each_in_the_same_second(make_config, tmp_path, monkeypatch):
    class Still(datetime):
        @classmethod
        def now(cls, zone=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=zone)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_dir_module, "datetime", Still)
    config = make_config()
    with claim_run_dir(config, "tiny") as first, claim_run_dir(config, "tiny") as second:
        names = [home.path.as_posix() for home in (first, second)]
    assert names == ["runs/tiny-none-20260102-030405", "runs/tiny-none-20260102-030405-2"]
    assert list(tmp_path.iterdir()) == []  # neither began


@pytest.mark.parametrize("name", ["old", "old/new/newer"])
@pytest.mark.parametrize("left", [[], [LOCK_NAME]])
def test_a_refused_run_leaves_what_was_there_and_takes_what_it_made(make_config, tmp_path, name, left):
    (tmp_path / "old").mkdir()
    for lock in left:
        (tmp_path / "old" / lock).write_text("of a run before\n")
    config = make_config(training__run_dir=str(tmp_path / name))
    with pytest.raises(ZeroDivisionError), claim_run_dir(config, "tiny") as home:
        print((home.path / LOCK_NAME).stat().st_size / 0)
    assert [path.name for path in (tmp_path / "old").iterdir()] == left


def test_a_config_that_no_run_wrote_is_not_overwritten(run_here, capsys, tmp_path):
    run_dir = tmp_path / "experiment"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text("# mine\n")
    assert run_here(*FEW_STEPS, "--run-dir", run_dir) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {run_dir / 'config.yaml'} is there and no run beside it")
    assert len(errors.splitlines()) == 1
    assert [(path.name, path.read_text()) for path in run_dir.iterdir()] == [("config.yaml", "# mine\n")]
    (run_dir / "metrics.jsonl").touch()  # of a run that was killed before its first step
    assert run_here(*FEW_STEPS, "--run-dir", run_dir) == 0


def test_no_room_for_the_lock(make_config, no_room, tmp_path):
    config = make_config(training__run_dir=str(tmp_path / "run"))
    with no_room(), pytest.raises(RunDirectoryError) as raised, claim_run_dir(config, "tiny"):
        pass
    assert str(raised.value) == (
        f"cannot write to the run directory {tmp_path / 'run'}: File too large; choose another --run-dir"
    )
    assert list(tmp_path.iterdir()) == []
