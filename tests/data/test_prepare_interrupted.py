"""A preparation that is killed, or runs out of room, and is then asked for again."""

import json
import os
import random
import select
import signal
import subprocess
from contextlib import contextmanager

import pytest

from megaselect.data import build
from megaselect.data.pieces import CHUNK_BYTES
from megaselect.data.prepare import prepare
from megaselect.data.watcher import Unwatched
from megaselect.data.workspace import open_workspace
from megaselect.errors import DataError

# What the scripts below share: each preparation runs in a process forked for it, which can be killed alone.
CALL = """
import json, os, random, select, signal, sys, time
from pathlib import Path
from megaselect.data import build
from megaselect.data.prepare import prepare
from megaselect.data.watcher import Unwatched

source, prefix, model = map(Path, sys.argv[1:4])
build._SAVE_SECONDS = 0
resumed = []

class Notes(Unwatched):
    def note(self, text):
        print(text, flush=True)

def call(seconds=None, before=lambda: None, workers=1):
    pid = os.fork()
    if pid == 0:
        before()
        prepare([source], prefix, tokenizer=model, test_fraction=0.1, workers=workers, watcher=Notes())
        os._exit(0)
    ended = os.pidfd_open(pid)
    if seconds is not None and not select.select([ended], [], [], seconds)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(ended)
    return os.waitpid(pid, 0)[1]

def contents():
    return {path.name: path.read_bytes() if path.is_file() else None for path in prefix.parent.iterdir()}

def clear():
    for path in prefix.parent.iterdir():
        path.unlink()
"""

KILL_AT_RANDOM_MOMENTS = (
    CALL
    + """
seed, num_calls, workers = map(int, sys.argv[4:])
start = time.monotonic()
assert call(workers=workers) == 0
seconds = time.monotonic() - start
whole = contents()
clear()
draw = random.Random(seed)
num_killed = 0
for number in range(num_calls):
    status = call(draw.uniform(0, seconds), workers=workers)
    if status == 0:
        assert contents() == whole
        clear()
    else:
        assert status == signal.SIGKILL, status
        num_killed += 1
assert call(workers=workers) == 0
assert contents() == whole
print("killed", num_killed)
"""
)

KILL_BEFORE_EVERY_CHANGE = (
    CALL
    + """
def kill_before(change):
    left = [change]
    def counted(function):
        def wrapper(*args, **kwargs):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return function(*args, **kwargs)
        return wrapper
    for name in ("replace", "unlink", "rmdir", "write_bytes"):
        setattr(Path, name, counted(getattr(Path, name)))
    os.fsync = counted(os.fsync)

old = contents()
assert call() == 0
new = contents()
change = 0
status = signal.SIGKILL
while status == signal.SIGKILL:
    for name in new:
        (prefix.parent / name).write_bytes(old[name])
    status = call(before=lambda: kill_before(change))
    state = contents()
    for split in ("", "_valid", "_test"):
        index, tokens = f"{prefix.name}{split}.idx", f"{prefix.name}{split}.bin"
        if index in state:
            assert (state[index], state[tokens]) in ((old[index], old[tokens]), (new[index], new[tokens])), change
    assert call() == 0
    assert contents() == new, change
    change += 1
assert status == 0
print("changes", change - 1)
"""
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four chunks of text files, compressed and not, and of lines."""
    root = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "of", "naïve", "façade", "😀"]

    def text(num_words):
        return " ".join(draw.choices(words, k=num_words)) + "\n"

    for number in range(12):
        (root / f"{number}.txt").write_text(text(4000))
    (root / "long.txt").write_text(text(200_000))
    lines = [json.dumps({"text": text(draw.randrange(1, 500))}) for _ in range(1000)]
    (root / "lines.jsonl").write_text("\n".join(lines))
    assert sum(path.stat().st_size for path in root.iterdir()) > 4 * CHUNK_BYTES
    return root


def outcome(child):
    out, err = child.communicate()
    assert (child.returncode, err) == (0, ""), out
    return out.splitlines()


def kill_at_random_moments(start_python, arguments, num_calls, workers):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    lines = outcome(start_python(KILL_AT_RANDOM_MOMENTS, *arguments, seed, num_calls, workers))
    num_killed = int(lines.pop().removeprefix("killed "))
    assert num_killed > num_calls / 4
    assert any(line.startswith("Going on after ") for line in lines)
    return num_killed


def test_killed_at_random_moments(corpus, tmp_path, start_python, default_dataset):
    arguments = (corpus, tmp_path / "out" / "text", default_dataset.tokenizer_path)
    kill_at_random_moments(start_python, arguments, num_calls=12, workers=1)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_many_random_moments(corpus, tmp_path, start_python, default_dataset, workers):
    arguments = (corpus, tmp_path / "out" / "text", default_dataset.tokenizer_path)
    kill_at_random_moments(start_python, arguments, num_calls=100, workers=workers)


def test_killed_before_every_change_of_a_file(tmp_path, start_python, default_dataset):
    """An older dataset is in the place of the new one; no reader ever finds a mixture of the two."""
    model, prefix = default_dataset.tokenizer_path, tmp_path / "out" / "text"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}\n" * 100)
    prepare([tmp_path / "old"], prefix, tokenizer=model, test_fraction=0.1)
    lines = outcome(start_python(KILL_BEFORE_EVERY_CHANGE, tmp_path / "new", prefix, model))
    assert int(lines[-1].removeprefix("changes ")) > 25


class Interrupted(Exception):
    """Raised by Notes."""


class Notes(Unwatched):
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


def test_another_request_starts_anew(corpus, tmp_path, default_dataset, monkeypatch):
    monkeypatch.setattr(build, "_SAVE_SECONDS", 0)
    prefix, model = tmp_path / "text", default_dataset.tokenizer_path
    with pytest.raises(Interrupted):
        prepare([corpus], prefix, tokenizer=model, watcher=Notes(2))
    second = Notes(3)
    with pytest.raises(Interrupted):
        prepare([corpus], prefix, tokenizer=model, valid_fraction=0.1, watcher=second)
    anew = f"{prefix}.partial holds the beginning of a preparation with another valid_fraction: starting anew."
    assert second.notes == [anew, kept(prefix)]
    (corpus / "0.txt").touch()
    third = Notes()
    prepare([corpus], prefix, tokenizer=model, valid_fraction=0.1, watcher=third)
    assert third.notes == [anew.replace("valid_fraction", "input")]
    assert not prefix.with_name("text.partial").exists()


def test_two_at_a_time_in_one_place(corpus, tmp_path, default_dataset):
    prefix = tmp_path / "text"
    with open_workspace(prefix, {"mine": True}, Unwatched()) as workspace:
        with pytest.raises(DataError) as caught:
            prepare([corpus], prefix, tokenizer=default_dataset.tokenizer_path)
        assert workspace.read("request.json") == {"mine": True}
    assert str(caught.value) == (
        f"another process is at work in {prefix}.partial; wait for it, or choose another output prefix"
    )


PREPARE_WITH_WORKERS = """
import multiprocessing, sys
from pathlib import Path
from megaselect.data import build
from megaselect.data.prepare import prepare
from megaselect.data.watcher import Unwatched
from megaselect.errors import DataError

class Processes(Unwatched):
    def stage(self, name, total_bytes, done_bytes=0):
        self.name = name
    def advance(self, num_bytes):
        if self.name == "tokens":
            print(*(process.pid for process in multiprocessing.active_children()), flush=True)
            sys.stdin.readline()
    def note(self, text):
        print(text)

build._SAVE_SECONDS = 0
source, prefix, model = map(Path, sys.argv[1:])
try:
    prepare([source], prefix, tokenizer=model, workers=2, watcher=Processes())
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
        child.communicate()
        for handle in handles:
            os.close(handle)


def test_workers_end_with_a_parent_that_is_killed(corpus, tmp_path, start_python, default_dataset):
    with working(start_python, corpus, tmp_path / "text", default_dataset.tokenizer_path) as (child, _, handles):
        child.kill()
        for handle in handles:
            assert select.select([handle], [], [], 30)[0], "a worker outlives its parent"


def test_a_worker_that_is_killed(corpus, tmp_path, start_python, default_dataset):
    prefix = tmp_path / "text"
    with working(start_python, corpus, prefix, default_dataset.tokenizer_path) as (child, pids, _):
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


def test_a_disk_that_is_full_and_then_is_not(corpus, tmp_path, small_disk, default_dataset, monkeypatch):
    monkeypatch.setattr(build, "_SAVE_SECONDS", 0)
    disk, resize = small_disk
    model, prefix = default_dataset.tokenizer_path, disk / "text"
    (disk / "other").write_bytes(bytes(1_000_000))
    watcher = Notes()
    with pytest.raises(DataError) as caught:
        prepare([corpus], prefix, tokenizer=model, watcher=watcher)
    assert str(caught.value) == (
        f"cannot write {prefix}: No space left on device; choose an output prefix in a directory that can be written"
    )
    assert watcher.notes == [kept(prefix)]
    assert sorted(path.name for path in disk.iterdir()) == ["other", "text.partial"]
    resize("size=8m")
    prepare([corpus], prefix, tokenizer=model, watcher=watcher)
    assert watcher.notes[1].startswith("Going on after ")
    prepare([corpus], tmp_path / "text", tokenizer=model)
    names = [f"text{end}" for end in (".bin", ".idx", ".json", ".model", "_valid.bin", "_valid.idx")]
    assert sorted(path.name for path in disk.iterdir()) == ["other", *names]
    for name in names:
        assert (disk / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_disk_without_room_for_anything(corpus, small_disk, default_dataset):
    disk, _ = small_disk
    with pytest.raises(OSError, match="No space left"):
        (disk / "other").write_bytes(bytes(3_000_000))
    with pytest.raises(DataError, match=r"^cannot write .*: No space left on device; "):
        prepare([corpus], disk / "text", tokenizer=default_dataset.tokenizer_path)
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_disk_that_may_only_be_read(corpus, small_disk, default_dataset):
    disk, resize = small_disk
    resize("ro")
    with pytest.raises(DataError) as caught:
        prepare([corpus], disk / "text", tokenizer=default_dataset.tokenizer_path)
    assert str(caught.value) == (
        f"cannot write {disk}/text: Read-only file system ({disk}/text.partial); choose an output prefix in a "
        "directory that can be written"
    )
