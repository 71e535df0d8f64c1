"""Training outlives its console; other commands end quietly where nobody reads, and say why where a disk is full."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
from small_disks import mounted

from megaselect.training.checkpoint_files import checkpoint_path, open_checkpoint

STEPS = 30
NOTE = "note: standard output: {}; the run goes on, and what cannot be printed is lost\n"


@pytest.fixture
def start(child_environment, small_flags, tmp_path):
    """`start(command, **streams)`: a child process; for train: of a small run that says much."""

    def popen(*arguments, **streams):
        code = "import sys; from megaselect.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.Popen(command, env=child_environment, text=True, **{"stderr": subprocess.PIPE, **streams})

    return popen


@pytest.fixture
def training(small_flags, tmp_path):
    """The command of a small run that prints each step."""
    flags = ("--max-steps", STEPS, "--training.sample-tokens", 0, "--logging.log-interval", 1)
    return ("train", *small_flags, *flags, "--run-dir", tmp_path / "run")


@pytest.fixture
def assert_complete(read_metrics, tmp_path):
    def check():
        assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(1, STEPS + 1))
        assert open_checkpoint(checkpoint_path(tmp_path / "run", STEPS)).saved.state.step == STEPS

    return check


@pytest.mark.soak
def test_a_run_goes_on_where_neither_output_nor_errors_can_be_written(start, training, assert_complete):
    with open("/dev/full", "w") as full:
        child = start(*training, stdout=full, stderr=subprocess.STDOUT)
        assert child.wait() == 0
    assert_complete()


def test_a_run_goes_on_after_its_reader_left(start, training, assert_complete):
    child = start(*training, stdout=subprocess.PIPE)
    while not child.stdout.readline().startswith("step 2"):
        assert child.poll() is None
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 0
    assert errors in ("", NOTE.format("Broken pipe"))  # empty where the pipe took all of it before
    assert_complete()


def test_the_log_goes_on_when_there_is_room_again(start, training, assert_complete, tmp_path):
    with mounted(tmp_path / "disk", 64 * 1024) as disk:
        (disk / "filler").write_bytes(bytes(56 * 1024))
        (disk / "filler.more").write_bytes(bytes(4 * 1024))
        with (disk / "log").open("a") as log:
            log.write("x" * 4095 + "\n")
            log.flush()
            child = start(*training, stdout=log)
            assert child.stderr.readline() == NOTE.format("No space left on device")
            (disk / "filler").unlink()
            errors = child.stderr.read()
            child.stderr.close()
            assert (child.wait(), errors) == (0, "")
        assert "finished" in (disk / "log").read_text()
    assert_complete()


@pytest.mark.parametrize("command", [("--version",), ("estimate", "--config", "tiny")])
def test_the_reader_of_a_command_may_leave(start, command):
    child = start(*command, stdout=subprocess.PIPE)
    child.stdout.close()
    errors = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), errors) == (141, "")


@pytest.mark.parametrize("command", [("--version",), ("estimate", "--config", "tiny")])
def test_a_full_disk_is_one_line(start, command):
    with open("/dev/full", "w") as full:
        child = start(*command, stdout=full)
        errors = child.communicate()[1]
    assert (child.returncode, errors) == (2, "error: cannot write the output: No space left on device\n")


def test_a_closed_output_is_none(start):
    child = start("estimate", "--config", "tiny", preexec_fn=lambda: os.close(1))
    assert (child.communicate()[1], child.returncode) == ("", 0)
