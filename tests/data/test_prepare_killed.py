"""A preparation that is killed, anywhere, and is then asked for again."""

import random

import pytest

from megaselect.data.prepare import prepare
from megaselect.data.tokenizer import train_tokenizer

# What the scripts below share: each preparation runs in a process forked for it, which can be killed alone.
CALL = """
import json, os, random, select, signal, sys, time
from pathlib import Path
from megaselect.data import build
from megaselect.data.prepare import prepare
from megaselect.data.progress import NoProgress

source, prefix, model = map(Path, sys.argv[1:4])
build._SAVE_SECONDS = 0
os.fsync = lambda file: None  # a killed process loses nothing that it has written; it would only take time

class Notes(NoProgress):
    def note(self, text):
        print(text, flush=True)

def call(seconds=None, before=lambda: None, workers=1):
    pid = os.fork()
    if pid == 0:
        before()
        prepare([source], prefix, tokenizer=model, test_fraction=0.1, workers=workers, progress=Notes())
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


def outcome(child):
    out, err = child.communicate()
    # Standard error is not empty: multiprocessing notices that a killed process left its semaphores.
    assert child.returncode == 0, out + err
    return out.splitlines()


def kill_at_random_moments(start_python, arguments, num_calls, workers):
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}")
    lines = outcome(start_python(KILL_AT_RANDOM_MOMENTS, *arguments, seed, num_calls, workers))
    num_killed = int(lines.pop().removeprefix("killed "))
    assert any(line.startswith("Going on after ") for line in lines)
    return num_killed


def test_killed_at_random_moments(mixed_corpus, tmp_path, start_python, default_dataset):
    arguments = (mixed_corpus, tmp_path / "out" / "text", default_dataset.tokenizer_path)
    assert kill_at_random_moments(start_python, arguments, num_calls=12, workers=1) > 3


@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_many_random_moments(mixed_corpus, tmp_path, start_python, default_dataset, workers):
    arguments = (mixed_corpus, tmp_path / "out" / "text", default_dataset.tokenizer_path)
    assert kill_at_random_moments(start_python, arguments, num_calls=100, workers=workers) > 25


def test_killed_before_every_change_of_a_file(tmp_path, start_python):
    """An older dataset is in the place of the new one; no reader ever finds a mixture of the two."""
    model, prefix = tmp_path / "small.model", tmp_path / "out" / "text"
    # Each of the processes, two a change, reads it anew.
    model.write_bytes(train_tokenizer([f"old and new and {number}" for number in range(99)], 280))
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}\n" * 100)
    prepare([tmp_path / "old"], prefix, tokenizer=model, test_fraction=0.1)
    lines = outcome(start_python(KILL_BEFORE_EVERY_CHANGE, tmp_path / "new", prefix, model))
    assert int(lines[-1].removeprefix("changes ")) > 25
