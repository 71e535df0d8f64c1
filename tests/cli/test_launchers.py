"""Several processes where one is meant: one line and exit code 2 for all, whoever started them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megaselect.cli import launchers
from megaselect.cli.launchers import find_launch
from megaselect.cli.main import main

ROOT = Path(__file__).parents[2]
# What a batch script has that asked for four tasks: it is one process.
BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = {**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
LINE = (
    "error: 2 processes were started ({}), and each would do the whole work by itself: start one, as with {}; to train "
    "on several, torchrun --nproc-per-node N train.py\n"
)
TORCHRUN_LINE = LINE.format("WORLD_SIZE", "torchrun --nproc-per-node 1, or without torchrun")


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (TORCHRUN, (8, 5, "WORLD_SIZE")),
        ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "8"}, None),  # somebody's variable: no launcher leaves out the rank
        ({"WORLD_SIZE": "many", "RANK": "0"}, None),
        (MPIRUN, (2, 1, "OMPI_COMM_WORLD_SIZE")),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, (2, 0, "PMI_SIZE")),
        (BATCH_SCRIPT, None),
        (SRUN, (4, 3, "SLURM_STEP_NUM_TASKS")),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({**SRUN, **TORCHRUN}, (8, 5, "WORLD_SIZE")),
        # Open MPI starts its own daemons by srun, one a node: what mpirun says of its processes holds.
        ({**SRUN, "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
    ],
)
def test_what_each_launcher_tells(environment, found):
    launch = find_launch(environment, on_terminal=False)
    assert (launch and launch[:3]) == found


def test_what_is_typed_in_a_shell_that_srun_started_runs_once():
    assert find_launch({**SRUN, "SLURM_PROCID": "0"}, on_terminal=True) is None
    assert find_launch(TORCHRUN, on_terminal=True) is not None


@pytest.fixture
def launched(monkeypatch):
    """launched(rank) makes this process one of two that torchrun has started, without the waiting."""
    monkeypatch.setattr(launchers, "FIRST_RANK_SECONDS", 0)
    monkeypatch.setattr(launchers, "OTHER_RANKS_SECONDS", 0)
    before = signal.getsignal(signal.SIGTERM)

    def launch(rank):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", str(rank))

    yield launch
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "line",
    [
        "compare",
        "verify",
        "evaluate --run x",
        "sample --run x",
        "dashboard",
        "data prepare --input x --output y",
    ],
)
def test_every_command_but_train_is_refused_in_one_line_by_the_first_process(line, launched, capsys):
    launched(rank=0)
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", TORCHRUN_LINE)
    launched(rank=1)
    assert main(line.split()) == 2
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), "mpirun -n 1"),
        (("PMI_SIZE", "PMI_RANK"), "mpirun -n 1"),
        (("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"), "srun --ntasks 1"),
    ],
)
def test_train_is_refused_where_its_processes_cannot_meet(names, remedy, launched, monkeypatch, capsys):
    monkeypatch.setenv(names[0], "2")
    for rank, told in enumerate([LINE.format(names[0], remedy), ""]):
        monkeypatch.setenv(names[1], str(rank))
        assert main(["train"]) == 2
        assert capsys.readouterr() == ("", told)


MISTYPED = "unknown flag --no-such; --help lists the flags\n"


def test_a_mistyped_flag_is_told_by_the_first_rank_which_ends_the_others(launched, monkeypatch, capsys):
    launched(rank=0)
    assert main(["train", "--no-such"]) == 2
    assert capsys.readouterr() == ("", f"error: {MISTYPED}")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as another process has it
    launched(rank=1)
    monkeypatch.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    assert main(["train", "--no-such"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_rank_that_alone_has_it_tells_it(launched, capsys):
    """As where the config's file is another one there: nobody ends it."""
    launched(rank=1)
    assert main(["train", "--no-such"]) == 2
    assert capsys.readouterr() == ("", f"error: rank 1: {MISTYPED}")


@pytest.mark.parametrize("line", ["--version", "runs .", "estimate --json --device cpu"])
def test_what_only_reads_is_answered(line, launched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    launched(rank=1)
    assert main(line.split()) == 0
    assert capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0


def test_a_process_that_the_launcher_ends_keeps_its_exit_code(launched, monkeypatch, capsys):
    launched(rank=1)
    monkeypatch.setattr(time, "sleep", lambda seconds: signal.raise_signal(signal.SIGTERM))
    assert main(["verify"]) == 2
    signal.raise_signal(signal.SIGTERM)  # which may come twice


def test_torchrun_shows_one_line_and_starts_nothing(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "megaselect", "verify"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (child.returncode, child.stdout) == (1, "")
    assert child.stderr.count("error: ") == child.stderr.count(TORCHRUN_LINE) == 1
    # The other one may not even have got as far as Python's first line when torchrun ends it.
    assert re.findall(r"rank +: (\d).*\n +exitcode +: (\S+)", child.stderr.partition("Root Cause")[2]) == [("0", "2")]
    assert list(tmp_path.iterdir()) == []
