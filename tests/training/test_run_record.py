"""run.json: how each start of a run ended, and from which step to which it went."""

import json
from contextlib import ExitStack

import pytest

from megaselect.errors import DataError, RunDirectoryError
from megaselect.training.metrics_file import read_tail
from megaselect.training.run_dir import claim_run_dir
from megaselect.training.run_record import RECORD_NAME, RunRecord, Segment, read_segments, set_damaged_aside

FEW_STEPS = ("--max-steps", 2, "--training.sample-tokens", 0, "--training.eval-interval", 0)


@pytest.fixture
def record(tmp_path):
    """`record(first_step)`: the record of a run in tmp_path, begun. `record.notes`: what it said."""

    def begin(first_step=0):
        segment = Segment.begin(first_step, "cpu", "2.0")
        begun = RunRecord(tmp_path, segment, begin.notes.append)
        begun.begin()
        return begun

    begin.notes = []
    return begin


def write_metrics(run_dir, steps, torn=""):
    lines = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, steps + 1)]
    (run_dir / "metrics.jsonl").write_text("".join(lines) + torn)


def ends(run_dir):
    return [(part.state, part.reason, part.first_step, part.last_step) for part in read_segments(run_dir)]


def test_a_run_and_its_continuation(run_here, tmp_path):
    run_dir = tmp_path / "run"
    assert run_here(*FEW_STEPS, "--run-dir", run_dir) == 0
    assert run_here(*FEW_STEPS, "--max-steps", 5, "--run-dir", run_dir) == 0
    assert ends(run_dir) == [("finished", None, 0, 2), ("finished", None, 2, 5)]
    first, second = read_segments(run_dir)
    assert first.started <= first.ended <= second.started
    assert first.versions.keys() == {"megaselect", "torch", "python"}
    assert first.device.startswith("cpu, ")


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (None, ("finished", None)),
        (KeyboardInterrupt(), ("stopped", "SIGINT")),
        (DataError("no such\nfile"), ("failed", "no such")),
        (ValueError("shape"), ("failed", "ValueError: shape")),
    ],
)
def test_how_a_run_ends(record, tmp_path, error, end):
    with pytest.raises(type(error)) if error else pytest.MonkeyPatch.context(), record():
        assert ends(tmp_path) == [("running", None, 0, None)]
        write_metrics(tmp_path, 3)
        if error:
            raise error
    assert ends(tmp_path) == [(*end, 0, 3)]


def test_a_run_that_was_stopped_says_by_what(record, tmp_path):
    with record(7) as begun:
        begun.stopped_by = "SIGTERM"
    assert ends(tmp_path) == [("stopped", "SIGTERM", 7, 7)]


def test_the_next_start_writes_down_that_a_run_was_killed(record, tmp_path):
    """Also how far it came: the metrics, whose torn last line does not count, are cut only after that."""
    record(0)
    write_metrics(tmp_path, 6, torn='{"step": 7')
    with record(4):
        write_metrics(tmp_path, 9)
    assert ends(tmp_path) == [("killed", None, 0, 6), ("finished", None, 4, 9)]


def test_what_a_killed_start_left_half_written_goes(make_config, tmp_path):
    for name in (".run.json.0a.partial", ".config.yaml.0b.partial", "mine.partial"):
        (tmp_path / name).touch()
    segment = Segment.begin(0, "cpu", "2.0")
    with (
        claim_run_dir(make_config(training__run_dir=str(tmp_path)), "tiny") as home,
        home.recorded(make_config(), segment, print),
    ):
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "run.json", "config.yaml", "mine.partial"}


@pytest.mark.parametrize(
    "content",
    ["", "null", "[]", "{}", '{"segments": [{}]}', '{"segments": "ab"}', "\udcff", "[" * 100_000],
)
def test_a_record_that_no_run_wrote_is_set_aside(tmp_path, content):
    path = tmp_path / RECORD_NAME
    path.write_text(content, errors="surrogateescape")
    written = path.read_bytes()
    with pytest.raises(RunDirectoryError, match="no run wrote it, or it is damaged") as raised:
        read_segments(tmp_path)
    assert str(path) in str(raised.value)
    assert set_damaged_aside(tmp_path) == [
        f"note: {path} could not be read: it is run.json.damaged now, and a new one begins"
    ]
    assert (path.exists(), (tmp_path / "run.json.damaged").read_bytes()) == (False, written)
    assert set_damaged_aside(tmp_path) == []


def test_a_record_with_an_unknown_state_is_refused(record, tmp_path):
    record()
    path = tmp_path / RECORD_NAME
    path.write_text(path.read_text().replace('"running"', '"walking"'))
    with pytest.raises(RunDirectoryError):
        read_segments(tmp_path)


def test_no_room_for_the_beginning(make_config, no_room, tmp_path):
    """One line, and nothing left of a run that never was."""
    config, segment = make_config(training__run_dir=str(tmp_path / "run")), Segment.begin(0, "cpu", "2.0")
    with (
        pytest.raises(RunDirectoryError, match=r"cannot write to the run directory .*File too large; choose another"),
        claim_run_dir(config, "tiny") as home,
        no_room(),
        home.recorded(config, segment, print),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_the_end_is_a_note(record, no_room, tmp_path):
    room = ExitStack()
    with record():
        room.enter_context(no_room())
    room.close()
    assert record.notes == [f"cannot write {tmp_path / RECORD_NAME}: File too large; it says that the run goes on"]
    assert ends(tmp_path) == [("running", None, 0, None)]
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_NAME]


def test_the_tail_is_the_last_whole_lines(tmp_path):
    write_metrics(tmp_path, 1000, torn='{"step": 1001, "loss": 2.')
    assert [line["step"] for line in read_tail(tmp_path, 3)] == [998, 999, 1000]
    assert [line["step"] for line in read_tail(tmp_path, 2000)] == list(range(1, 1001))
    write_metrics(tmp_path, 0, torn='{"step"')
    assert read_tail(tmp_path, 3) == []


def test_the_tail_of_long_lines_is_those_that_are_whole(tmp_path):
    lines = [json.dumps({"step": step, "source": "x" * 100_000}) + "\n" for step in range(1, 6)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    assert [line["step"] for line in read_tail(tmp_path, 5)] == [4, 5]


def test_the_tail_of_a_huge_file_is_read_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
        file.seek(2**40)
        file.write(b'\n{"step": 3}\n')
    assert read_tail(tmp_path, 1) == [{"step": 3}]


@pytest.mark.parametrize("line", ["3", "{}", '{"step": "3"}', "nonsense", '{"step": true}'])
def test_a_line_that_no_run_wrote(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match="no run wrote"):
        read_tail(tmp_path, 3)
