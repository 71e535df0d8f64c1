"""A run recorded offline that is killed and resumed, twice, as the SDK and TensorBoard read it back.

Two processes train: the first is killed at step 8, the second resumes from the checkpoint of step 5 in another mode, is
told to stop at step 12 and resumes once more.
"""

import os
import re
import signal
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_records import inspect_all, logged, of_kind, run_python_in
from wandb_server import KEY, stand_in_server

from megaselect.data.indexed_dataset import IndexedDatasetWriter

VOCABULARY = 64
SAVED, KILLED, STOPPED, LAST = 5, 8, 12, 15
TRAIN = f"""
import os, signal, time
from pathlib import Path
from megaselect.cli import train
from megaselect.cli.main import main
from megaselect.report.sinks import Sinks
from megaselect.training.checkpoint_files import list_checkpoints

class Signal:
    '''A sink that sends this process a signal after a step, once a checkpoint is there.'''
    def __init__(self, number, step):
        self.number, self.at = number, step
    def step(self, metrics):
        if metrics["step"] == self.at:
            while not list_checkpoints(Path("run")):
                time.sleep(0.01)
            os.kill(os.getpid(), self.number)
    def identity(self):
        return {{}}
    def __getattr__(self, name):
        return lambda *_: None

made = train._make_sink
def run(mode, number=None, step=0):
    train._make_sink = lambda *given: Sinks([made(*given), Signal(number, step)])
    return main(["train", "--model.num-layers", "2", "--model.hidden-size", "16", "--model.num-attention-heads", "2",
        "--model.seq-length", "8", "--model.vocab-size", "{VOCABULARY}", "--data.prefix", "tokens", "--device", "cpu",
        "--training.micro-batch-size", "2", "--training.global-batch-size", "4", "--max-steps", "{LAST}",
        "--training.save-interval", "{SAVED}", "--training.eval-interval", "{SAVED}", "--training.eval-samples", "2",
        "--training.sample-tokens", "0", "--wandb", "offline", "--tensorboard", "--run-dir", "run",
        "--training.warmup-steps", "2", "--recompute", mode])
"""


pytestmark = pytest.mark.soak  # its runs take a fifth of a minute


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """The records of each segment, in the order of their starts, and what the processes printed."""
    home = tmp_path_factory.mktemp("segments")
    writer = IndexedDatasetWriter(home / "tokens", VOCABULARY)
    writer.add_document(np.random.default_rng(0).integers(0, VOCABULARY, 3000).tolist())
    writer.finish()
    run_python = partial(run_python_in, home, OMP_NUM_THREADS="1")
    killed = run_python(TRAIN + f"run('none', signal.SIGKILL, {KILLED})")
    assert (killed.returncode, killed.stderr) == (-signal.SIGKILL, "")
    resumed = run_python(TRAIN + f"assert (run('full', signal.SIGTERM, {STOPPED}), run('none')) == (143, 0)")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    folders = list((home / "run/wandb").glob("offline-run-*"))
    runs = sorted(inspect_all(run_python, folders), key=lambda records: of_kind(records, "run")[0]["start_time"])
    output = killed.stdout + resumed.stdout
    return SimpleNamespace(runs=runs, home=home, folders=folders, output=output, run_python=run_python)


def rows(records, column):
    """Step -> the column's value, of the rows that have it."""
    found = [(row["step"], row[column]) for row in logged(records) if column in row]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_each_resumption_is_a_segment_of_one_series(segments):
    runs = [of_kind(records, "run")[0] for records in segments.runs]
    (series,) = {run["run_id"] for run in runs}
    assert [run["config"]["update"]["series"] for run in runs] == [
        {"id": series, "first_step": first} for first in (1, SAVED + 1, STOPPED + 1)
    ]
    assert [run["tags"][0] for run in runs] == ["none", "full", "none"]
    assert {re.fullmatch(r"offline-run-\d+_\d+-(.+)", folder.name)[1] for folder in segments.folders} == {series}
    assert segments.output.count("run/wandb/offline-run-*") == 3  # the command that uploads them all


def test_steps_are_continuous_and_those_taken_again_are_equal_to_the_bit(segments):
    losses = [rows(records, "train/loss") for records in segments.runs]
    assert [list(part) for part in losses] == [
        list(range(1, KILLED + 1)),
        list(range(SAVED + 1, STOPPED + 1)),
        list(range(STOPPED + 1, LAST + 1)),
    ]
    again = range(SAVED + 1, KILLED + 1)
    for column in ("train/loss", "train/grad_norm", "train/lr"):
        first, second, _ = (rows(records, column) for records in segments.runs)
        assert [first[step] for step in again] == [second[step] for step in again]


def test_the_axis_is_the_same_in_every_segment(segments):
    tokens = [rows(records, "tokens") for records in map(_steps_alone, segments.runs)]
    assert all(count == 4 * 8 * step for part in tokens for step, count in part.items())
    evaluated = [rows(records, "eval/loss") for records in segments.runs]
    assert [list(part) for part in evaluated] == [[SAVED], [2 * SAVED], [LAST]]
    for records in segments.runs:
        metrics = {metric["glob_name"]: metric["step_metric"] for metric in of_kind(records, "metric")}
        assert metrics["train/*"] == metrics["eval/*"] == metrics["mem/*"] == metrics["perf/*"] == "tokens"


def _steps_alone(records):
    """Without the rows of evaluations, which come at the same steps."""
    return [r for r in records if r["type"] != "history" or "train/loss" in r["history"]["item"]]


def test_memory_is_there_for_every_step(segments):
    for records in segments.runs:
        for column in ("mem/saved_bytes", "mem/peak_bytes", "mem/resident_bytes", "perf/data_ms"):
            assert rows(records, column).keys() == rows(records, "train/loss").keys()
    none, full, _ = (set(rows(records, "mem/saved_bytes").values()) for records in segments.runs)
    assert min(none) > max(full)


def test_wandb_sync_joins_the_segments_into_one_run(segments):
    upload = f"from wandb.cli.cli import cli\ncli(['sync', *{sorted(map(str, segments.folders), reverse=True)}])"
    with stand_in_server() as server:
        address = f"http://127.0.0.1:{server.server_port}"
        uploaded = segments.run_python(upload, WANDB_API_KEY=KEY, WANDB_BASE_URL=address)
    assert uploaded.returncode == 0, uploaded.stderr
    steps = [row["step"] for row in server.history if "train/loss" in row]
    assert steps == [*range(1, KILLED + 1), *range(SAVED + 1, STOPPED + 1), *range(STOPPED + 1, LAST + 1)]
    assert [row["_step"] for row in server.history] == list(range(len(server.history)))


def test_tensorboard_shows_every_step_once(segments):
    events = EventAccumulator(os.fspath(segments.home / "run/tensorboard")).Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, LAST + 1))
    for records in segments.runs:
        for step, loss in rows(records, "train/loss").items():
            assert shown[step] == np.float32(loss)
