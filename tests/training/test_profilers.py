"""Profiles and memory snapshots: what is in the files, and that looking changes nothing."""

import gzip
import json
import pickle
from pathlib import Path

import pytest
import torch

from megaselect.training.memory_snapshot import MAX_EVENTS, MemorySnapshot
from megaselect.training.phases import PhaseTimes
from megaselect.training.profilers import Profilers
from megaselect.training.run import train

MICRO_BATCHES = 2
STEP = [*("data", "forward", "backward") * MICRO_BATCHES, "optimizer"]


def read_trace(path):
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def ranges_by_step(events):
    """Step's name -> the names of the phases inside it, in their order."""
    marked = sorted((event for event in events if event.get("cat") == "user_annotation"), key=lambda event: event["ts"])
    steps = {event["name"]: event for event in marked if event["name"].startswith("step ")}
    return {
        name: [event["name"] for event in marked if event["name"] in STEP and _inside(event, step)]
        for name, step in steps.items()
    }


def _inside(event, other):
    return other["ts"] <= event["ts"] and event["ts"] + event["dur"] <= other["ts"] + other["dur"]


def test_the_trace_holds_the_chosen_steps_with_their_phases_and_changes_no_bit(
    run_here, run_child, small_flags, tmp_path, read_metrics
):  # fmt: skip
    flags = ("--max-steps", 4, "--training.eval-interval", 0)
    assert run_here(*flags, "--run-dir", tmp_path / "plain") == 0
    # In a process of its own: torch's profiler reads once how much it should tell stderr.
    child = run_child(*small_flags, *flags, "--run-dir", tmp_path / "seen", "--profile", "2-3")
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.count("profile:") == 1
    home = tmp_path / "seen" / "profile"
    assert {path.name for path in home.iterdir()} == {"steps-2-3.json.gz", "steps-2-3.txt"}
    events = read_trace(home / "steps-2-3.json.gz")
    assert ranges_by_step(events) == {"step 2": STEP, "step 3": STEP}
    norms = [event for event in events if event["name"] == "megaselect::layer_norm"]
    assert len(norms) == 2 * MICRO_BATCHES * 3  # steps; one at the end, and one a layer: the other is fused
    assert "Self CPU" in (home / "steps-2-3.txt").read_text()
    for plain, seen in zip(*(read_metrics(tmp_path / name) for name in ("plain", "seen")), strict=True):
        assert [plain[name] for name in ("loss", "grad_norm")] == [seen[name] for name in ("loss", "grad_norm")]


@pytest.fixture
def profilers(make_config, tmp_path):
    """Instruments for steps 3 to 9, the phases they hear of, and the notes they make."""

    def make(**logging):
        notes, phases = [], PhaseTimes(torch.device("cpu"))
        config = make_config(**{f"logging__{name}": value for name, value in logging.items()})
        return Profilers(config, phases, tmp_path, torch.device("cpu"), notes.append), phases, notes

    return make


def take_step(phases, step=STEP):
    phases.start()
    for phase in step:
        phases.done(phase)


def test_a_run_that_ends_inside_the_range_writes_what_it_took(profilers, tmp_path):
    watched, phases, notes = profilers(profile="3-9")
    with watched:
        for number in range(1, 6):
            with watched.step(number):
                take_step(phases)
    assert ranges_by_step(read_trace(tmp_path / "profile" / "steps-3-5.json.gz")) == {
        f"step {number}": STEP for number in (3, 4, 5)
    }
    assert len(notes) == 1
    assert f"{tmp_path}/profile/steps-3-5.json.gz" in notes[0]


def test_a_step_that_an_error_ends_is_in_the_trace_and_one_taken_again_is_whole(profilers, tmp_path):
    watched, phases, _ = profilers(profile="3")

    def interrupted():
        with watched, watched.step(3):
            take_step(phases, ["data", "forward"])
            take_step(phases)
            take_step(phases, ["data"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    events = read_trace(tmp_path / "profile" / "steps-3.json.gz")
    assert ranges_by_step(events) == {"step 3": ["data", "forward", "backward", *STEP, "data", "forward"]}


def test_steps_that_never_came_are_said_not_to_have_come(profilers, tmp_path):
    watched, _, notes = profilers(profile="3-9")
    with watched, watched.step(2):
        pass
    assert notes == ["note: --profile: the run took none of the steps 3 to 9"]
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_cannot_be_written_stops_nothing(profilers, tmp_path):
    (tmp_path / "profile").write_text("in the way")
    watched, phases, notes = profilers(profile="3")
    with watched:
        for number in (3, 4):
            with watched.step(number):
                take_step(phases)
    assert notes == [f"profile: cannot write to {tmp_path}/profile: File exists"]


def test_a_memory_snapshot_without_a_gpu_is_refused_before_the_run(run_here, tmp_path, capsys):
    assert run_here("--memory-snapshot", "--device", "cpu", "--run-dir", tmp_path / "run") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: --memory-snapshot: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A snapshot where torch's own recorder is replaced by one that writes which calls it heard; and the notes."""
    calls, notes = [], []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **asked: calls.append(asked))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text(str(len(calls))))
    return MemorySnapshot(tmp_path, notes.append), calls, notes


@pytest.mark.parametrize(("steps", "name"), [(10, "steps-1-3"), (3, "steps-1-3"), (2, "steps-1-2")])
def test_a_memory_snapshot_is_of_the_first_steps_that_the_run_takes(snapshot, tmp_path, steps, name):
    taken, calls, notes = snapshot
    for number in range(1, steps + 1):
        taken.step_begins(number)
    taken.close()
    path = tmp_path / "memory" / f"{name}.pickle"
    assert list((tmp_path / "memory").iterdir()) == [path]
    assert path.read_text() == "1"  # while it was recording
    assert calls == [{"max_entries": MAX_EVENTS}, {"enabled": None}]
    assert notes == [f"memory snapshot: {path}, for pytorch.org/memory_viz"]


def test_a_memory_snapshot_that_cannot_be_written_stops_nothing(snapshot, tmp_path):
    taken, calls, notes = snapshot
    (tmp_path / "memory").write_text("in the way")
    for number in range(1, 6):
        taken.step_begins(number)
    taken.close()
    assert notes == [f"memory snapshot: cannot write {tmp_path}/memory/steps-1-3.pickle: File exists"]
    assert calls[-1] == {"enabled": None}


@pytest.mark.cuda
def test_a_memory_snapshot_holds_the_allocations_of_the_first_steps(run_here, tmp_path):
    assert run_here("--memory-snapshot", "--device", "cuda", "--max-steps", 5, "--run-dir", tmp_path) == 0
    snapshot = pickle.loads((tmp_path / "memory" / "steps-1-3.pickle").read_bytes())
    actions = {entry["action"] for device in snapshot["device_traces"] for entry in device}
    assert {"alloc", "free_completed"} <= actions
    assert snapshot["segments"]


class Interrupted:
    """A sink that raises after the second step, and keeps what it is told of failures."""

    def __init__(self):
        self.failures = []

    def step(self, metrics):
        if metrics["step"] == 2:
            raise KeyboardInterrupt

    def fail(self, reason):
        self.failures.append(reason)

    def identity(self):
        return {}

    def __getattr__(self, name):
        return lambda *_: None


def test_an_error_in_a_run_is_told_to_the_sink_and_leaves_the_trace(make_config, dataset, tmp_path):
    sink = Interrupted()
    config = make_config(data__prefix=str(dataset), training__run_dir=str(tmp_path), logging__profile="1-9")
    with pytest.raises(KeyboardInterrupt):
        train(config, "small", [], lambda *_: sink)
    assert sink.failures == ["KeyboardInterrupt"]
    assert list(ranges_by_step(read_trace(tmp_path / "profile" / "steps-1-2.json.gz"))) == ["step 1", "step 2"]
