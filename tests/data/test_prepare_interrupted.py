"""A preparation that is stopped from outside, or runs out of room, and is then asked for again."""

import multiprocessing
import os
import select
import signal
import subprocess
from contextlib import contextmanager, suppress

import pytest

from megaselect.data import build
from megaselect.data.prepare import prepare
from megaselect.data.progress import NoProgress
from megaselect.data.workspace import open_workspace
from megaselect.errors import DataError


class Interrupted(Exception):
    """Raised by Notes."""


class Notes(NoProgress):
    """Keeps notes, and interrupts when so many chunks are encoded."""

    def __init__(self, num_chunks=None):
        self.notes, self._left, self._stage = [], num_chunks, ""

    def stage(self, name, total_bytes, done_bytes=0):
        self._stage = name

    def advance(self, num_bytes):
        if self._stage == "tokens" and self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise Interrupted

    def note(self, text):
        self.notes.append(text)


def kept(prefix):
    return f"What was done is kept in {prefix}.partial: the same command goes on from there."


def test_another_request_starts_anew(mixed_corpus, tmp_path, default_dataset, monkeypatch):
    monkeypatch.setattr(build, "_SAVE_SECONDS", 0)
    prefix, model = tmp_path / "text", default_dataset.tokenizer_path
    with pytest.raises(Interrupted):
        prepare([mixed_corpus], prefix, tokenizer=model, progress=Notes(2))
    second = Notes(3)
    with pytest.raises(Interrupted):
        prepare([mixed_corpus], prefix, tokenizer=model, valid_fraction=0.1, progress=second)
    anew = f"{prefix}.partial holds the beginning of a preparation with another valid_fraction: starting anew."
    assert second.notes == [anew, kept(prefix)]
    (mixed_corpus / "0.txt").touch()
    third = Notes()
    prepare([mixed_corpus], prefix, tokenizer=model, valid_fraction=0.1, progress=third)
    assert third.notes == [anew.replace("valid_fraction", "input")]
    assert not prefix.with_name("text.partial").exists()


def test_two_at_a_time_in_one_place(mixed_corpus, tmp_path, default_dataset):
    prefix = tmp_path / "text"
    with open_workspace(prefix, {"mine": True}, NoProgress()) as workspace:
        with pytest.raises(DataError) as caught:
            prepare([mixed_corpus], prefix, tokenizer=default_dataset.tokenizer_path)
        assert workspace.read("request.json") == {"mine": True}
    assert str(caught.value) == (
        f"another process is at work in {prefix}.partial; wait for it, or choose another output prefix"
    )


def test_a_directory_of_somebody_elses(mixed_corpus, tmp_path, default_dataset):
    (tmp_path / "text.partial").mkdir()
    (tmp_path / "text.partial" / "thesis.txt").write_text("chapter 1")
    with pytest.raises(DataError) as caught:
        prepare([mixed_corpus], tmp_path / "text", tokenizer=default_dataset.tokenizer_path)
    assert str(caught.value) == (
        f"{tmp_path}/text.partial is where a preparation keeps its work, but its files are not a preparation's; "
        "move them away, or choose another output prefix"
    )
    (kept_file,) = (tmp_path / "text.partial").iterdir()
    assert kept_file.read_text() == "chapter 1"


PREPARE_WITH_WORKERS = """
import multiprocessing, sys
from pathlib import Path
from megaselect.data import build, workers
from megaselect.data.prepare import prepare
from megaselect.data.progress import NoProgress
from megaselect.errors import DataError

class Processes(NoProgress):
    def stage(self, name, total_bytes, done_bytes=0):
        self.name = name
    def advance(self, num_bytes):
        if self.name == "tokens":
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            sys.stdin.readline()
    def note(self, text):
        print(text)

build._SAVE_SECONDS = 0
workers._CHUNKS_PER_WORKER = 1  # chunks are left when a worker is killed, however late
source, prefix, model = map(Path, sys.argv[1:])
try:
    prepare([source], prefix, tokenizer=model, workers=2, progress=Processes())
except DataError as error:
    print(error)
"""


@contextmanager
def working(start_python, *arguments):
    """A preparation that stands still after each chunk, with handles of its workers."""
    child = start_python(PREPARE_WITH_WORKERS, *arguments)
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert len(pids) == 2
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        yield child, pids, handles
    finally:
        child.kill()
        for handle in handles:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        child.communicate()


def test_workers_end_with_a_parent_that_is_killed(mixed_corpus, tmp_path, start_python, default_dataset):
    with working(start_python, mixed_corpus, tmp_path / "text", default_dataset.tokenizer_path) as (child, _, handles):
        child.kill()
        for handle in handles:
            assert select.select([handle], [], [], 600)[0], "a worker outlives its parent"


def test_a_worker_that_is_killed(mixed_corpus, tmp_path, start_python, default_dataset):
    prefix = tmp_path / "text"
    with working(start_python, mixed_corpus, prefix, default_dataset.tokenizer_path) as (child, pids, _):
        child.stdin.write("\n")  # lets the first chunk be saved
        child.stdin.flush()
        child.stdout.readline()
        os.kill(pids[0], signal.SIGKILL)
        out, err = child.communicate("\n" * 10)
    lines = [line for line in out.splitlines() if not line.replace(" ", "").isdigit() and line]
    assert err == ""
    assert lines == [
        kept(prefix),
        "a worker process was ended from outside, perhaps for want of memory; run the same command again with a "
        "smaller --workers than 2",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["text.partial"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, and a function that gives it more."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here: {mounted.stderr.strip()}")

    def resize(options):
        subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)

    try:
        yield place, resize
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_full_and_then_is_not(mixed_corpus, tmp_path, small_disk, default_dataset, monkeypatch):
    monkeypatch.setattr(build, "_SAVE_SECONDS", 0)
    disk, resize = small_disk
    model, prefix = default_dataset.tokenizer_path, disk / "text"
    (disk / "other").write_bytes(bytes(1_000_000))
    progress, before = Notes(), set(multiprocessing.active_children())
    with pytest.raises(DataError) as caught:
        prepare([mixed_corpus], prefix, tokenizer=model, workers=2, progress=progress)
    assert set(multiprocessing.active_children()) <= before
    assert str(caught.value) == (
        f"cannot write {prefix}: No space left on device; choose an output prefix in a directory that can be written"
    )
    assert progress.notes == [kept(prefix)]
    assert sorted(path.name for path in disk.iterdir()) == ["other", "text.partial"]
    resize("size=8m")
    prepare([mixed_corpus], prefix, tokenizer=model, progress=progress)
    assert progress.notes[1].startswith("Going on after ")
    prepare([mixed_corpus], tmp_path / "text", tokenizer=model)
    names = [f"text{end}" for end in (".bin", ".idx", ".json", ".model", "_valid.bin", "_valid.idx")]
    assert sorted(path.name for path in disk.iterdir()) == ["other", *names]
    for name in names:
        assert (disk / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_disk_without_room_for_anything(mixed_corpus, small_disk, default_dataset):
    disk, _ = small_disk
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(3_000_000))
    with pytest.raises(DataError, match=r"^cannot write .*: No space left on device; "):
        prepare([mixed_corpus], disk / "text", tokenizer=default_dataset.tokenizer_path)
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_disk_that_may_only_be_read(mixed_corpus, small_disk, default_dataset):
    disk, resize = small_disk
    resize("ro")
    with pytest.raises(DataError) as caught:
        prepare([mixed_corpus], disk / "text", tokenizer=default_dataset.tokenizer_path)
    assert str(caught.value) == (
        f"cannot write {disk}/text: Read-only file system ({disk}/text.partial); choose an output prefix in a "
        "directory that can be written"
    )
