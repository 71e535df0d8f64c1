"""torchrun itself: starting again, two nodes, and what becomes of the ranks where it is killed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched_runs import assert_same_run, last_tensors, lasting_metrics

ROOT = Path(__file__).parents[2]
SECONDS = 240
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture
def start(rank_environment, run_arguments, tmp_path):
    """start(torchrun's flags, *flags) is torchrun as a child, in a process group of its own; killed after the test."""
    started = []

    def start(launch, *flags):
        command = [*TORCHRUN, *launch, str(ROOT / "train.py"), *run_arguments[1:], *flags]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        child = subprocess.Popen(command, cwd=tmp_path, env=rank_environment, process_group=0, **pipes)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def wait_for(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ranks_of(child):
    """Process ids, in the order of ranks."""
    return list(map(int, Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()))


def has_ended(pid):
    """Whether it is gone, or dead and not yet waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def steps(run_dir):
    try:
        return len(lasting_metrics(run_dir))
    except FileNotFoundError:
        return 0


@pytest.mark.soak
def test_started_again_it_goes_on_in_the_same_directory(start, tmp_path, launcher, run_arguments):
    """Which the run did not name."""
    flags = ("--max-steps", "6", "--training.save-interval", "1")
    child = start(["--nproc-per-node", "2", "--max-restarts", "3"], *flags)
    wait_for(lambda: any(steps(path) > 1 for path in tmp_path.glob("runs/*")))
    os.kill(ranks_of(child)[1], signal.SIGKILL)
    _, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 0
    assert len(re.findall(r"^error: rank 1 \(process \d+ on \S+\) ended without a word", errors, re.MULTILINE)) == 1
    assert errors.count("error: ") == 1
    assert "frame #" not in errors  # of torch's own warnings of connections
    (run_dir,) = tmp_path.glob("runs/*")
    assert launcher.run([*run_arguments, *flags, "--run-dir", "whole"], tmp_path, 1).codes == [0]
    assert_same_run(run_dir, tmp_path / "whole")


@pytest.mark.soak
def test_no_rank_outlives_a_torchrun_that_is_killed(start, tmp_path):
    """And each has saved what was done, without the store, which torchrun has kept."""
    run_dir = tmp_path / "run"
    child = start(["--nproc-per-node", "2"], "--max-steps", "100000", "--run-dir", str(run_dir))
    wait_for(lambda: steps(run_dir) > 0)
    ranks = ranks_of(child)
    child.kill()
    wait_for(lambda: all(map(has_ended, ranks)))
    step, _ = last_tensors(run_dir)
    assert step == steps(run_dir)


@pytest.mark.soak
def test_ctrl_c_ends_a_run_as_one_process_does(start, tmp_path):
    run_dir = tmp_path / "run"
    child = start(["--nproc-per-node", "2"], "--max-steps", "100000", "--run-dir", str(run_dir))
    wait_for(lambda: steps(run_dir) > 0)
    os.killpg(child.pid, signal.SIGINT)
    output, errors = child.communicate(timeout=SECONDS)
    assert "interrupted" in output
    assert "error: " not in errors
    step, _ = last_tensors(run_dir)
    assert step == steps(run_dir)


@pytest.mark.soak
def test_one_run_in_wandb_and_one_in_tensorboard(start, tmp_path):
    child = start(
        ["--nproc-per-node", "2"],
        *("--wandb", "offline", "--tensorboard", "--max-steps", "2", "--run-dir", "run"),
    )
    output, errors = child.communicate(timeout=SECONDS)
    assert child.returncode == 0, errors
    (written,) = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    assert written.stat().st_size > 0
    assert len(list((tmp_path / "run").rglob("events.out.tfevents.*"))) == 1
    assert output.count("wandb: offline") == 1


@pytest.fixture
def start_nodes(start):
    """Two nodes of one rank each, on this machine."""

    def start_nodes(*flags):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        nodes = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
        return [start([*nodes, "--node-rank", str(number)], *flags) for number in range(2)]

    return start_nodes


@pytest.mark.soak
def test_two_nodes_have_the_bits_of_one_process(start_nodes, tmp_path, launcher, run_arguments):
    flags = ("--max-steps", "6")
    nodes = start_nodes(*flags, "--run-dir", "run")
    for node in nodes:
        node.communicate(timeout=SECONDS)
    assert [node.returncode for node in nodes] == [0, 0]
    assert launcher.run([*run_arguments, *flags, "--run-dir", "whole"], tmp_path, 1).codes == [0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.soak
@pytest.mark.parametrize("killed", [0, 1])
def test_both_nodes_end_where_a_rank_of_one_is_killed(start_nodes, tmp_path, killed):
    run_dir = tmp_path / "run"
    nodes = start_nodes("--max-steps", "100000", "--run-dir", str(run_dir))
    wait_for(lambda: steps(run_dir) > 0)
    (rank,) = ranks_of(nodes[killed])
    os.kill(rank, signal.SIGKILL)
    told = "".join(node.communicate(timeout=SECONDS)[1] for node in nodes)
    assert all(node.returncode for node in nodes)
    assert told.count("error: ") == 1
    assert f"error: rank {killed} (process {rank} on " in told
