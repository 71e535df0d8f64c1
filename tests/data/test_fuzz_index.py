"""Whatever stands in an .idx and a .bin: they load and each sequence is what the bytes say, or DataError says why."""

import random
import secrets
import struct
import tracemalloc
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.errors import DataError

MAGIC = b"MMIDIDX\0\0"
HEADER_BYTES = 34
LETTERS = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}  # struct's, of each dtype code
EDGES = [0, 1, 2, 3, 7, 2**15, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -1, -2, -(2**31), -(2**63)]

# The files are smaller than a kilobyte, and a forged length asks for gigabytes. Between them lies what Python's own
# tables take when they grow.
MAX_BYTES_HELD = 4_000_000


def pack(letter, values):
    """Little-endian, each value cut to its low bits."""
    size = struct.calcsize(letter)
    return b"".join((value & (256**size - 1)).to_bytes(size, "little") for value in values)


def make_index(code, lengths, offsets, bounds, modes=b"", counts=None, magic=MAGIC, version=1):
    counts = counts or (len(lengths), len(bounds))
    header = magic + pack("q", [version]) + pack("b", [code]) + pack("q", counts)
    return header + pack("i", lengths) + pack("q", offsets) + pack("q", bounds) + modes


def valid_parts(draw):
    """What an index says, and the .bin it speaks of: sequences back to back or anywhere, with or without modes."""
    code = draw.choice(list(LETTERS))
    size = struct.calcsize(LETTERS[code])
    lengths = [draw.randrange(5) for _ in range(draw.randrange(1, 6))]
    lengths[draw.randrange(len(lengths))] += 1
    if draw.random() < 0.7:
        offsets = [size * sum(lengths[:i]) for i in range(len(lengths))]
        num_tokens = sum(lengths) + draw.randrange(2)
    else:
        num_tokens = max(lengths) + draw.randrange(5)
        offsets = [size * draw.randrange(num_tokens - length + 1) for length in lengths]
    bounds = [0, *sorted(draw.randrange(len(lengths) + 1) for _ in range(draw.randrange(4))), len(lengths)]
    modes = bytes(len(lengths)) if draw.random() < 0.2 else b""
    tokens = bytes(draw.randrange(256) for _ in range(size * num_tokens))
    return code, lengths, offsets, bounds, modes, tokens


def valid_files(draw):
    *index, tokens = valid_parts(draw)
    return make_index(*index), tokens


def nudged(draw):
    """Valid files but for one number in the index, which is a little wrong or very."""
    *index, tokens = valid_parts(draw)
    numbers = draw.choice(index[1:4])
    place = draw.randrange(len(numbers))
    numbers[place] = draw.choice([numbers[place] + draw.randrange(-3, 4), draw.choice(EDGES)])
    return make_index(*index), tokens


def mutated(draw):
    """Valid files with one to three changes of the kinds that disks, copies and editors make, or an adversary."""
    files = list(valid_files(draw))
    for _ in range(draw.randrange(1, 4)):
        number = draw.randrange(4) // 3  # the index three times in four
        content = bytearray(files[number])
        at = draw.randrange(len(content) + 1)
        kind = draw.randrange(5)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            content[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        elif kind == 3:
            del content[at : at + draw.randrange(1, 9)]
        else:
            edge = pack(draw.choice("iq"), [draw.choice(EDGES)])
            content[at : at + len(edge)] = edge
        files[number] = bytes(content)
    return tuple(files)


def structured(draw):
    """A header and arrays that fit each other in size, filled with numbers that overflow or contradict each other."""

    def number():
        return draw.choice(EDGES) + draw.randrange(-1, 2)

    code = draw.choice([*LETTERS, *LETTERS, 0, 6, 7, 9, 255])
    num_sequences, num_bounds = draw.randrange(5), draw.randrange(6)
    lengths = [draw.choice([draw.randrange(4), number()]) for _ in range(num_sequences)]
    offsets = [draw.choice([8 * draw.randrange(4), number()]) for _ in range(num_sequences)]
    inner = [draw.choice([draw.randrange(num_sequences + 1), number()]) for _ in range(num_bounds)]
    bounds = draw.choice([inner, [0, *inner, num_sequences], [0, *sorted(inner), num_sequences]])
    counts = draw.choice([None, None, None, (number(), len(bounds)), (num_sequences, number()), (number(), number())])
    magic = draw.choice([MAGIC] * 9 + [b"TNTIDX\0\0\0"])
    version = draw.choice([1] * 9 + [number()])
    index = make_index(code, lengths, offsets, bounds, b"", counts, magic, version)
    return index + bytes(draw.choice([0, 0, 0, num_sequences, 1])), bytes(range(draw.randrange(100)))


def noise(draw):
    """Bytes, behind a header's first ones or not."""
    start = MAGIC + pack("q", [1]) if draw.random() < 0.5 else b""
    return start + bytes(draw.randrange(256) for _ in range(draw.randrange(80))), bytes(draw.randrange(20))


def any_files(draw):
    return draw.choice([valid_files, nudged, nudged, mutated, mutated, structured, structured, noise])(draw)


def sequences_of(index, tokens):
    """What the bytes say, read by the format: dtype, sequences, bounds."""
    code, num_sequences, num_bounds = struct.unpack_from("<BQQ", index, 17)
    lengths = struct.unpack_from(f"<{num_sequences}i", index, HEADER_BYTES)
    offsets = struct.unpack_from(f"<{num_sequences}q", index, HEADER_BYTES + 4 * num_sequences)
    bounds = struct.unpack_from(f"<{num_bounds}q", index, HEADER_BYTES + 12 * num_sequences)
    sequences = [
        list(struct.unpack_from(f"<{length}{LETTERS[code]}", tokens, offset))
        for length, offset in zip(lengths, offsets, strict=True)
    ]
    return sequences, bounds


def write_over(path, content):
    """Without emptying the file first, which some file systems answer by waiting for the disk."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def load(prefix):
    """The dataset, or the message of the refusal."""
    try:
        return IndexedDataset(prefix)
    except DataError as error:
        return str(error)


def load_traced(prefix):
    """The same, and the most bytes that Python held meanwhile."""
    tracemalloc.start()
    dataset = load(prefix)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return dataset, peak


def judge(prefix, index, tokens):
    """ "loaded" or "refused"; fails where neither is right."""
    write_over(Path(f"{prefix}.idx"), index)
    write_over(Path(f"{prefix}.bin"), tokens)
    dataset, peak = load_traced(prefix)
    if peak >= MAX_BYTES_HELD:  # what another thread of the process held counts too, but not every time
        peak = min(load_traced(prefix)[1] for _ in range(3))
    assert peak < MAX_BYTES_HELD
    if isinstance(dataset, str):
        assert dataset.startswith(str(prefix))
        assert "\n" not in dataset
        return "refused"
    sequences, bounds = sequences_of(index, tokens)
    assert [sequence.tolist() for sequence in dataset] == sequences
    stream = list(chain.from_iterable(sequences))
    assert len(dataset.tokens) == len(stream) > 0
    assert dataset.tokens[0 : len(stream)].tolist() == stream
    assert list(bounds) == sorted(bounds)
    assert (bounds[0], bounds[-1]) == (0, len(sequences))
    assert dataset.num_documents == len(bounds) - 1
    return "loaded"


DRAWS = st.integers(0, 2**64 - 1).map(random.Random)


@given(DRAWS)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_files_load_or_are_refused_in_one_line(tmp_path, draw):
    judge(tmp_path / "fuzz", *any_files(draw))


@given(DRAWS)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_valid_files_load(tmp_path, draw):
    assert judge(tmp_path / "fuzz", *valid_files(draw)) == "loaded"


@pytest.mark.parametrize(
    "bounds",
    [
        # Differences of 64-bit numbers wrap round: 2**63 - 1 -> -2 looks like a step of 2**63 - 1 up.
        pytest.param([0, 2**63 - 1, -2, 1], id="bounds whose differences overflow"),
    ],
)
def test_found_by_fuzzing(tmp_path, bounds):
    assert judge(tmp_path / "fuzz", make_index(1, [1], [0], bounds), b"\1") == "refused"


@pytest.mark.soak
def test_a_hundred_thousand_files_load_or_are_refused_in_one_line(tmp_path):
    seed = secrets.randbits(32)
    outcomes = Counter()
    for number in range(120_000):
        files = any_files(random.Random(f"{seed}-{number}"))
        try:
            outcomes[judge(tmp_path / "fuzz", *files)] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}, input {number}: {files}") from error
    print(f"seed {seed}: {dict(outcomes)}")
    assert min(outcomes["loaded"], outcomes["refused"]) > 10_000
