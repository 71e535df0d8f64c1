"""Each test runs the real SDK in a process of its own: its settings are read once a process, from the environment."""

import os
import pty
import re
import socket

import pytest
from wandb_records import inspect, logged, of_kind, summary
from wandb_server import KEY, stand_in_server

START = f"""
import json
import sys
from pathlib import Path
sys.path.insert(0, {os.path.dirname(__file__)!r})
from conftest import HEADER, SUMMARY, _metrics, play
from megaselect.errors import ConfigError
from megaselect.report import wandb_connection
from megaselect.report.wandb_sink import WandbSink
"""
OFFLINE_NOTE = "wandb: offline{}; to upload: wandb sync runs/tiny/wandb/offline-run-*\n"


def identifier(folder):
    """The run's id: what follows offline-run-DATE- or run-DATE- in the folder's name."""
    return re.fullmatch(r"(offline-)?run-\d+_\d+-(selective-[0-9a-f]{8})", folder.name)[2]


def run_folders(tmp_path):
    return sorted((tmp_path / "runs/tiny/wandb").glob("*run-*-*"))


def assert_all_is_recorded(records):
    """Of a run of two steps: what it is called, its configuration, history, summary and end. Returns the run."""
    (run,) = of_kind(records, "run")
    assert run["project"] == "project-x"
    assert run["run_group"] == "group-y"
    assert run["job_type"] == "train"
    assert run["display_name"] == "selective"
    assert run["tags"] == ["selective", "unfused", "cpu", "float32", "tiny"]
    config = run["config"]["update"]
    assert config["recompute"] == {"mode": "selective", "modules": ["softmax", "dropout"]}
    assert config["model"] == {"num_layers": 4, "ffn_hidden_size": None, "attention": "unfused"}
    assert config["resolved"] == {"device": "cpu, 2 threads", "dtype": "float32", "parameters": 2587392}
    assert {metric["glob_name"]: metric["step_metric"] for metric in of_kind(records, "metric")} == dict.fromkeys(
        ["train/*", "eval/*", "mem/*", "perf/*", "data/*"], "tokens"
    )
    assert config["series"] == {"id": run["run_id"], "first_step": 1}
    known = {"train/lr": 0.001, "mem/saved_bytes": 9647900, "perf/step_ms": 500, "perf/tokens_per_s": 2048}
    assert logged(records) == [
        {"step": 1, "samples": 8, "tokens": 1024, "train/loss": 8.4, **known},
        {"step": 2, "samples": 16, "tokens": 2048, "train/loss": 8.3, **known},
        {"step": 2, "tokens": 2048, "eval/loss": 6.75},
    ]
    result = {name: value for update in of_kind(records, "summary") for name, value in update["update"].items()}
    assert {name: value for name, value in result.items() if name.startswith("mem/")} == {
        "mem/predicted_bytes": 9647900,
        "mem/measured_bytes": 9647900,
        "mem/prediction_exact": True,
        "mem/saved_bytes": 9647900,
        "mem/peak_bytes": 3 * 2**30,
    }
    assert result["eval/best_loss"] == 6.25
    assert result["sample"] == "First Citizen:\nSpeak."
    assert "perf/median_mfu" not in result
    assert of_kind(records, "exit")[0]["exit_code"] == 0
    return run


def test_auto_without_a_key_records_offline_and_a_resumed_run_goes_on(run_python, header, tmp_path):
    first = run_python(START + "play(WandbSink('auto', 'project-x', 'group-y', 'runs/tiny', print), [1, 2])")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == OFFLINE_NOTE.format(" (no API key)")  # one line, of 80 columns at most
    assert len(first.stdout) <= 80 + len("\n")
    (folder,) = run_folders(tmp_path)
    records = inspect(run_python, folder)
    run = assert_all_is_recorded(records)
    former = {"wandb_id": identifier(folder)}
    resumed = (
        "play(WandbSink('offline', 'project-x', None, 'runs/tiny', print), [3, 4], True, "
        f"first_step=2, identity={former})"
    )
    second = run_python(START + resumed)
    assert second.stdout == OFFLINE_NOTE.format("")
    (later,) = set(run_folders(tmp_path)) - {folder}
    again = inspect(run_python, later)
    (resumed_run,) = of_kind(again, "run")
    assert resumed_run["run_id"] == run["run_id"] == identifier(folder)
    assert resumed_run["display_name"] == "tiny selective"  # no group that tells which model it is
    assert [row["tokens"] for row in logged(again)] == [3072, 4096, 4096]
    assert of_kind(again, "exit")[0]["exit_code"] == 130  # interrupted

    assert resumed_run["config"]["update"]["series"] == {"id": run["run_id"], "first_step": 3}

    elsewhere = {**header().config, "training": {"resume": "runs/other/checkpoints/step-00000002"}}
    branch = (
        "play(WandbSink('offline', 'project-x', None, 'runs/tiny', print), [3], "
        f"first_step=2, identity={former}, config={elsewhere})"
    )
    assert run_python(START + branch).returncode == 0
    identifiers = [identifier(folder) for folder in run_folders(tmp_path)]
    assert len(identifiers) == 3
    assert len(set(identifiers)) == 2
    assert not (tmp_path / "wandb").exists()


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({}, "no API key"),
        ({"WANDB_API_KEY": "short"}, "WANDB_API_KEY invalid: API key must have 40+ characters, has 5"),
    ],
)
def test_online_without_a_usable_key_is_refused_and_never_asks(run_python, variables, problem):
    refused = """
for start in (wandb_connection.check_key, lambda mode: WandbSink(mode, 'p', None, 'runs/tiny', print)):
    try:
        start('online')
    except ConfigError as error:
        print(error)
assert sys.stdin.isatty()
"""
    ours, terminal = pty.openpty()  # on a terminal the SDK would ask for a key, for ever
    output = run_python(START + refused, stdin=terminal, **variables)
    os.close(terminal)
    os.close(ours)
    assert (output.returncode, output.stderr) == (0, "")
    assert output.stdout == 2 * f"--wandb online: {problem}; set WANDB_API_KEY, or use --wandb offline\n"


@pytest.fixture
def server():
    with stand_in_server() as server:
        yield server


def test_auto_with_a_key_in_netrc_records_online_and_a_resumed_run_sends_what_was_lost(run_python, tmp_path, server):
    """The server has steps 1 and 2 of a run whose checkpoint is of step 5."""
    host = f"127.0.0.1:{server.server_port}"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    play = START + "play(WandbSink('auto', 'project-x', None, 'runs/tiny', print), [1, 2])"
    variables = {"WANDB_BASE_URL": f"http://{host}", "WANDB_INIT_TIMEOUT": "600", "WANDB_FINISH_TIMEOUT": "600"}
    output = run_python(play, **variables)
    assert (output.returncode, output.stderr) == (0, "")
    (folder,) = run_folders(tmp_path)
    assert output.stdout == f"wandb: http://{host}/someone/project-x/runs/{identifier(folder)}\n"
    identity = {"wandb_id": identifier(folder)}
    assert [row.get("train/loss") for row in server.history] == [8.4, 8.3, None]
    assert server.history[-1]["eval/loss"] == 6.75

    resumed = f"""
lines = [_metrics(step, **({{'valid_loss': 6.5}} if step == 4 else {{}})) for step in range(1, 7)]
Path('runs/tiny/metrics.jsonl').write_text(''.join(json.dumps(line) + chr(10) for line in lines) + '{{"step": 7, "lo')
play(WandbSink('auto', 'project-x', None, 'runs/tiny', print), [6], first_step=5, identity={identity})
"""
    assert run_python(START + resumed, **variables).returncode == 0
    rows = [(row["step"], row.get("train/loss", row.get("eval/loss"))) for row in server.history]
    assert rows == [(1, 8.4), (2, 8.3), (2, 6.75), (3, 8.2), (4, 8.1), (4, 6.5), (5, 8.0), (6, 7.9), (6, 6.75)]
    assert [row["_step"] for row in server.history] == list(range(9))


@pytest.mark.parametrize(("mode", "variables"), [("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})])
def test_disabled_writes_nothing_and_imports_nothing(run_python, tmp_path, mode, variables):
    play = f"play(WandbSink({mode!r}, 'p', None, 'runs/tiny', print), [1])\nprint('wandb' in sys.modules)"
    output = run_python(START + play, **variables)
    assert (output.returncode, output.stdout, output.stderr) == (0, "False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_leaves_an_offline_run(run_python, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        shorter = "wandb_connection.INIT_TIMEOUT_SECONDS = 1\n"
        play = shorter + "play(WandbSink('online', 'p', None, 'runs/tiny', print), [1])"
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        output = run_python(START + play, WANDB_API_KEY=KEY, WANDB_BASE_URL=address)
    assert (output.returncode, output.stderr) == (0, "")
    (note,) = output.stdout.splitlines()
    assert note.startswith("wandb: offline (Timed out")
    assert note.endswith("); to upload: wandb sync runs/tiny/wandb/offline-run-*")
    (folder,) = (folder for folder in run_folders(tmp_path) if folder.name.startswith("offline"))
    assert logged(inspect(run_python, folder))[0]["train/loss"] == 8.4


def test_a_run_that_an_error_ends_has_failed_and_says_why(run_python, tmp_path):
    play = """
sink = WandbSink('offline', 'p', None, 'runs/tiny', print)
sink.start(HEADER)
sink.step(_metrics(1, data_ms=0.5, **{'samples/a': 6}))
sink.fail('DeviceError: out of memory')
"""
    output = run_python(START + play)
    assert (output.returncode, output.stderr) == (0, "")
    (folder,) = run_folders(tmp_path)
    records = inspect(run_python, folder)
    assert summary(records)["failure"] == "DeviceError: out of memory"
    assert of_kind(records, "exit")[0]["exit_code"] == 1
    (row,) = logged(records)
    assert (row["perf/data_ms"], row["data/samples/a"]) == (0.5, 6)


def test_training_goes_on_when_the_disk_is_full(run_python, tmp_path):
    play = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))  # of any file that this process or the SDK's writes
sink = WandbSink('offline', 'p', None, 'runs/tiny', print)
sink.start(HEADER)
for step in range(1, 1000):
    sink.step(_metrics(step))
sink.finish(SUMMARY)
print('trained')
"""
    output = run_python(START + play)
    assert (output.returncode, output.stderr) == (0, "")
    assert output.stdout.splitlines()[-1] == "trained"
    (folder,) = run_folders(tmp_path)
    (file,) = folder.glob("*.wandb")
    assert file.stat().st_size <= 65536


def test_training_goes_on_when_the_sdk_dies(run_python):
    play = """
import os, signal
from pathlib import Path

sink = WandbSink('offline', 'p', None, 'runs/tiny', print)
sink.start(HEADER)
tasks = Path('/proc/self/task').iterdir()
children = [int(child) for task in tasks for child in (task / 'children').read_text().split()]
(core,) = (child for child in children if b'wandb-core' in Path(f'/proc/{child}/cmdline').read_bytes())
os.kill(core, signal.SIGKILL)
os.waitpid(core, 0)
for step in range(1, 100):
    sink.step(_metrics(step))
sink.finish(SUMMARY)
print('trained')
"""
    output = run_python(START + play)
    assert (output.returncode, output.stderr) == (0, "")
    offline, lost, trained = output.stdout.splitlines(keepends=True)
    assert offline == OFFLINE_NOTE.format("")
    assert lost.startswith("wandb: ")
    assert lost.endswith("; training goes on without it\n")
    assert trained == "trained\n"
