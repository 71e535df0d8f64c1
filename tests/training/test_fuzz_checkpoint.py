"""Whatever bytes lie where a checkpoint should be: it loads to the values that were saved, or is refused in one line.

Half of the inputs get a manifest whose checksums fit them, so that what lies behind the checksums is reached; they may
load to other values of the right kind.
"""

import json
import random
import resource
import secrets
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import FILES, Tiny, reseal, same

from megaselect.errors import CheckpointError
from megaselect.training.checkpoint import newest_checkpoint
from megaselect.training.checkpoint_files import MANIFEST
from megaselect.training.compatibility import changed_data, changed_settings
from megaselect.training.state import RunState

ROOM_BYTES = 2**30  # more than this no input of a few kilobytes may ask for
LONGEST_SECONDS = 600.0  # on a machine with other work; a forged length would take longer
SHORT, LONG = 300, 100_000

INTEGERS = (0, 1, -1, 2**31, 2**53, 2**62, 2**63 - 1, 2**64 - 1, 10**30, -(10**30))
WORDS = ("", "F32", "step", "../state.json", "é", "\n", "\x00", "NaN")


def some_value(draw, depth=3):
    """Anything that JSON holds."""
    kind = draw.randrange(8 if depth else 6)
    if kind == 6:
        return [some_value(draw, depth - 1) for _ in range(draw.randrange(4))]
    if kind == 7:
        return {draw.choice(WORDS): some_value(draw, depth - 1) for _ in range(draw.randrange(4))}
    scalars = (None, draw.random() < 0.5, draw.choice(INTEGERS), draw.randrange(64), draw.uniform(-9, 9))
    return draw.choice([float("nan"), float("inf"), 1e308, draw.choice(WORDS)]) if kind == 5 else scalars[kind]


def scaled(place, length):
    return min(int(place * length), max(length - 1, 0))


def flip_bit(content, place, bit):
    if not content:
        return content
    at = scaled(place, len(content))
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def paste(content, place, length, inserted):
    at = scaled(place, len(content))
    return content[:at] + inserted + content[at + length :]


def forge_json(content, place, value, remove):
    """Another value at one place of the tree, or none; content that is no JSON stays."""
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError):
        return content
    spots = list(places_in(tree))
    if not spots:
        return json.dumps(value).encode()
    holder, key = spots[scaled(place, len(spots))]
    if remove:
        del holder[key]
    else:
        holder[key] = value
    return json.dumps(tree).encode()


def places_in(tree):
    """(container, key) of every value below."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from places_in(value)


def forge_header(content, **edit):
    """The same within a safetensors file, with the header's length that belongs to it."""
    length = int.from_bytes(content[:8], "little")
    header = forge_json(content[8 : 8 + length], **edit)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def some_edit(draw):
    """From a file's content to another one; or the file whose content it gets, or None: it is removed."""
    place, kind = draw.random(), draw.randrange(8)
    if kind == 0:
        return partial(flip_bit, place=place, bit=draw.randrange(8))
    if kind == 1:
        return partial(paste, place=place, length=draw.randrange(64), inserted=draw.randbytes(draw.randrange(17)))
    if kind == 2:
        number = draw.choice([draw.randrange(2**64), draw.randrange(5000)])
        return partial(paste, place=0.0, length=8, inserted=number.to_bytes(8, "little"))
    if kind == 3:
        return partial(paste, place=place, length=10**9, inserted=b"")
    if kind == 4:
        return draw.choice([*FILES, None])
    forge = forge_header if kind == 5 else forge_json
    return partial(forge, place=place, value=some_value(draw), remove=draw.random() < 0.3)


def some_attempt(draw):
    """(file, edit) pairs, and whether the manifest fits the outcome."""
    return [(draw.choice(FILES), some_edit(draw)) for _ in range(draw.randrange(1, 4))], draw.random() < 0.5


class Target:
    """A checkpoint that is written anew for each attempt on it."""

    def __init__(self, run_dir):
        self.run_dir, self.tiny = run_dir, Tiny().train(2)
        self.state = RunState(4, 16, 1, 2.5, 3, {"wandb": "id"})
        self.home = self.tiny.write(run_dir, self.state)
        self.files = {name: (self.home / name).read_bytes() for name in FILES}
        self.expected = self.tiny.tensors()
        self.loaded = self.refused = 0

    def attempt(self, edits, sealed):
        """The files after the edits; with sealed, the manifest fits them."""
        contents = dict(self.files)
        for name, edit in edits:
            if callable(edit):
                contents[name] = edit(contents[name] or b"")
            else:
                contents[name] = contents[edit] if edit else None
        if sealed and None not in contents.values():
            contents = self.sealed(contents, {name for name, _ in edits})
        self.write(contents)
        started = time.monotonic()
        refusal = ""
        try:
            state, tensors = self.load()
        except CheckpointError as error:
            refusal = str(error)
        assert time.monotonic() - started < LONGEST_SECONDS
        assert "\n" not in refusal
        if refusal:
            self.refused += 1
            return
        self.loaded += 1
        assert same(tensors, self.expected) if not sealed else tensors.keys() == self.expected.keys()
        assert state == self.state if not sealed else isinstance(state, RunState)

    def sealed(self, contents, touched):
        """The edits of the manifest itself are kept, and get the digest that belongs to them."""
        self.write({**contents, MANIFEST: self.files[MANIFEST]})
        reseal(self.home)
        if MANIFEST not in touched:
            return {**contents, MANIFEST: (self.home / MANIFEST).read_bytes()}
        return contents | {MANIFEST: resealed_text(contents[MANIFEST])}

    def write(self, contents):
        for name, content in contents.items():
            (self.home / name).unlink(missing_ok=True)  # ext4 flushes a file that is cut to nothing and written again
            if content is not None:
                (self.home / name).write_bytes(content)

    def load(self):
        found = newest_checkpoint(self.run_dir).checkpoint
        changed_settings(found, self.tiny.config, torch.float32)
        changed_data(found, self.tiny.config, "data", self.run_dir)
        return self.tiny.load(found.path)


def resealed_text(content):
    from megaselect.training.checkpoint_records import Damage, Manifest, read_record

    try:
        return read_record(Manifest, content, MANIFEST).sealed().model_dump_json().encode()
    except (Damage, ValueError):
        return content


@pytest.fixture
def target(tmp_path):
    """With little more memory than the process has, so that a forged length cannot take much of it."""
    target = Target(tmp_path)
    target.load()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM_BYTES, hard))
    yield target
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def told(target, started):
    spent = time.monotonic() - started
    count = target.loaded + target.refused
    print(f"{count:,} inputs in {spent:.0f} s: {target.refused:,} refused, {target.loaded:,} loaded")


def test_bytes_that_are_not_a_checkpoint(target):
    @settings(max_examples=SHORT, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def attempts(draw):
        target.attempt(*some_attempt(draw))

    started = time.monotonic()
    attempts()
    told(target, started)
    assert target.refused > SHORT / 2
    assert target.loaded


@pytest.mark.soak
def test_many_bytes_that_are_not_a_checkpoint(target):
    seed, started = secrets.randbits(32), time.monotonic()
    for number in range(LONG):
        drawn = f"{seed}/{number}"
        try:
            target.attempt(*some_attempt(random.Random(drawn)))
        except BaseException:
            print(f"input drawn from {drawn!r}")
            raise
    told(target, started)
