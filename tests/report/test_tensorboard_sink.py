"""Event files, read back by TensorBoard itself."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaselect.cli.main import main
from megaselect.report.tensorboard_sink import TensorBoardSink


@pytest.fixture
def sink(tmp_path):
    """Makes a sink and the list of its notes."""

    def make():
        notes = []
        return TensorBoardSink(tmp_path, notes.append), notes

    return make


def read(tmp_path):
    """What TensorBoard shows of the run directory."""
    return EventAccumulator(str(tmp_path / "tensorboard")).Reload()


def values(events, name):
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_killed_run_and_the_one_that_continues_it_are_one_line_without_a_step_twice(
    sink, header, metrics, summary, tmp_path
):
    killed, _ = sink()
    killed.start(header())
    for step in range(1, 8):
        killed.step(metrics(step, peak_bytes=step))
        if step == 3:
            killed.evaluation(step, 6.75)
    # No finish: what is in the file is what a kill leaves.
    assert [step for step, _ in values(read(tmp_path), "train/loss")] == [1, 2, 3, 4, 5, 6, 7]
    resumed, notes = sink()
    resumed.start(header(first_step=4))
    for step in (5, 6, 7, 8):
        resumed.step(metrics(step, peak_bytes=100 * step, **{"samples/a": 2.0 * step}))
    resumed.evaluation(8, 6.25)
    resumed.finish(summary(steps=8, test_loss=6.5))
    events = read(tmp_path)
    assert values(events, "mem/peak_bytes") == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 500), (6, 600), (7, 700), (8, 800)]
    assert values(events, "eval/loss") == [(3, 6.75), (8, 6.25)]
    assert values(events, "eval/test_loss") == [(8, 6.5)]
    assert values(events, "tokens")[-1] == (8, 8192)
    assert values(events, "data/samples/a") == [(5, 10), (6, 12), (7, 14), (8, 16)]
    assert "perf/mfu" not in events.Tags()["scalars"]  # not known
    assert {"config/text_summary", "sample/text_summary"} <= set(events.Tags()["tensors"])
    assert notes == []


def test_where_nothing_can_be_written_training_goes_on(sink, header, metrics, summary, tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    blocked, notes = sink()
    blocked.start(header())
    blocked.step(metrics(1))
    blocked.fail("DeviceError: out of memory")
    blocked.finish(summary())
    (note,) = notes
    assert note.startswith("tensorboard: ")
    assert note.endswith("; training goes on without it")


def test_a_disk_that_is_full_later_ends_the_recording_alone(sink, header, metrics, summary, monkeypatch):
    recording, notes = sink()
    recording.start(header())
    recording.step(metrics(1))
    monkeypatch.setattr(recording._writer, "flush", _full)
    for step in (2, 3):
        recording.step(metrics(step))
    recording.finish(summary())
    assert notes == ["tensorboard: [Errno 28] No space left on device; training goes on without it"]


def _full():
    raise OSError(28, "No space left on device")


def test_without_the_package_the_extra_is_named_before_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in ("megaselect.report.tensorboard_sink", "torch.utils.tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert main(["train", "--tensorboard", "--wandb", "disabled", "--run-dir", str(tmp_path / "run")]) == 2
    remedy = "`pip install '.[tensorboard]'` installs what is needed"
    assert capsys.readouterr().err == f"error: the Python package tensorboard is not installed; {remedy}\n"
    assert not (tmp_path / "run" / "config.yaml").exists()
