"""metrics.jsonl holds whole lines, each step once, also after a full disk, a quota or a kill."""

import json
import os

import pytest
from small_disks import file_size_limit, mounted

from megaselect.errors import CheckpointError
from megaselect.training.metrics_file import MetricsFile

LINE_BYTES = len(json.dumps({"step": 1, "loss": 0.5})) + 1


@pytest.fixture
def notes():
    return []


def write(file, *steps):
    for step in steps:
        file.write({"step": step, "loss": 0.5})


def steps_in(path):
    """Every line must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["step"] for line in text.splitlines()]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 9)))
    return path


@pytest.mark.parametrize(("resumed_step", "kept"), [(0, 0), (1, 1), (4, 4), (8, 8), (100, 8)])
def test_steps_that_will_be_done_again_are_cut_off(path, notes, resumed_step, kept):
    with MetricsFile(path, resumed_step, notes.append) as file:
        write(file, resumed_step + 1)
    assert steps_in(path) == [*range(1, kept + 1), resumed_step + 1]
    assert sorted(each.name for each in path.parent.iterdir()) == ["metrics.jsonl"]


@pytest.mark.parametrize("tail", ['{"step": 9, "lo', "\0" * 100, "\0\n\0\n", "not a line\n"])
def test_what_lies_after_the_checkpoints_step_need_not_be_whole(path, notes, tail):
    """Lines before a checkpoint were flushed to disk; what a crash of the machine left after them may be anything."""
    path.write_text(path.read_text() + tail)
    with MetricsFile(path, 8, notes.append) as file:
        write(file, 9)
    assert steps_in(path) == list(range(1, 10))


@pytest.mark.parametrize("line", ["not JSON", "[]", "{}", '{"step": "x"}', '{"step": Infinity}', "[" * 100_000, "\0"])
def test_a_line_that_no_run_wrote_is_refused_and_left(path, notes, line):
    path.write_text(line + "\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl holds a line that no run wrote: move the file away"):
        MetricsFile(path, 0, notes.append)
    assert path.read_text() == line + "\n"


def test_a_line_is_with_the_system_when_it_is_written(path, notes):
    with MetricsFile(path, 8, notes.append) as file:
        write(file, 9)
        assert steps_in(path) == list(range(1, 10))


def test_lines_wait_for_room_on_a_full_disk(tmp_path, notes):
    with mounted(tmp_path / "disk", 64 * 1024) as disk:
        path, filler = disk / "metrics.jsonl", disk / "filler"
        with MetricsFile(path, 0, notes.append) as file:
            write(file, 1, 2)
            with filler.open("wb", buffering=0) as other:
                while other.tell() < 15 * 4096 and other.write(bytes(4096)):
                    pass
            last = 2 + 5000 // LINE_BYTES
            write(file, *range(3, last))  # more than the one page that the file has
            held = steps_in(path)
            assert held == list(range(1, held[-1] + 1))
            assert held[-1] < last - 1
            assert len(notes) == 1
            assert (
                "No space left on device; the run goes on and its metrics wait in memory: free some space" in notes[0]
            )
            with pytest.raises(OSError, match="No space left on device"):
                file.sync()
            filler.unlink()
            write(file, last)
            file.sync()
            assert steps_in(path) == list(range(1, last + 1))
        assert len(notes) == 1


def test_a_line_that_was_cut_short_is_taken_back(path, notes):
    """A quota lets a part of a line through."""
    with MetricsFile(path, 8, notes.append) as file:
        with file_size_limit(8 * LINE_BYTES + 5):
            write(file, 9, 10)
            assert steps_in(path) == list(range(1, 9))
        write(file, 11)
        assert steps_in(path) == list(range(1, 12))
    assert len(notes) == 1
    assert "File too large" in notes[0]


def test_lines_that_never_found_room_are_told(path, notes):
    with file_size_limit(8 * LINE_BYTES + 5), MetricsFile(path, 8, notes.append) as file:
        write(file, 9, 10)
    assert notes[-1] == f"2 lines of {path} are lost: File too large"
    assert len(notes) == 2
    assert steps_in(path) == list(range(1, 9))


def test_each_time_that_lines_wait_is_told_once(path, notes):
    with MetricsFile(path, 8, notes.append) as file:
        for first in (9, 12):
            with file_size_limit(0):
                write(file, first, first + 1)
            write(file, first + 2)
    assert len(notes) == 2
    assert steps_in(path) == list(range(1, 15))


def test_a_file_that_was_removed_is_made_again(path, notes):
    with MetricsFile(path, 8, notes.append) as file:
        path.unlink()
        write(file, 9)
        file.sync()
        assert steps_in(path) == [9]
        os.rename(path.parent, path.parent.with_name("moved"))
        write(file, 10)
    assert steps_in(path.parent.with_name("moved") / "metrics.jsonl") == [9, 10]
    assert notes == []


def test_a_directory_that_cannot_be_written(tmp_path, notes):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics\.jsonl: Not a directory"):
        MetricsFile(tmp_path / "file" / "metrics.jsonl", 0, notes.append)
