"""Each way an index can be wrong is one DataError that names the file, the value and the remedy."""

import re
from pathlib import Path

import pytest

from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.errors import DataError


def message_of(prefix):
    with pytest.raises(DataError) as caught:
        IndexedDataset(prefix)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(prefix), "PREFIX")


def test_missing_files(write_index, tmp_path):
    expected = (
        "PREFIX.idx does not exist; name the common prefix of a .bin and an .idx file, such as `megaselect data "
        "prepare` or Megatron-LM's preprocess_data.py writes"
    )
    assert message_of(tmp_path / "absent") == expected
    prefix = write_index()
    for suffix in (".bin", ".idx"):
        assert (
            message_of(f"{prefix}{suffix}") == f"PREFIX.idx does not exist; give the prefix without {suffix}: {prefix}"
        )
    Path(f"{prefix}.bin").unlink()
    assert message_of(prefix) == expected.replace(".idx does", ".bin does")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"magic": b"TNTIDX\0\0\0"},
            r"PREFIX.idx starts with b'TNTIDX\x00\x00\x00', not with b'MMIDIDX\x00\x00': it is no index of "
            "Megatron-LM's indexed dataset; write one with `megaselect data prepare`",
        ),
        ({"version": 2}, "PREFIX.idx has version 2, but only version 1 can be read; convert it first"),
        ({"code": 6}, "PREFIX.idx holds float64 values (dtype code 6), but token ids are integers"),
        ({"code": 7}, "PREFIX.idx holds float32 values (dtype code 7), but token ids are integers"),
        (
            {"code": 9},
            "PREFIX.idx has dtype code 9, but token ids have one of 1, 2, 3, 4, 5, 8; it is damaged: write it again",
        ),
        (
            {"trailer": b"\0"},
            "PREFIX.idx has 95 bytes, but an index of 3 sequences and 3 document bounds has 94; it is damaged: "
            "write it again",
        ),
        (
            {"tokens": b"\1\2\3\4\5"},
            "PREFIX.bin has 5 bytes, but PREFIX.idx puts sequence 2 at byte 4 with 2 tokens of 1 bytes; the two do not "
            "belong together or the .bin was cut short: write both again",
        ),
        (
            {"tokens": b""},
            "PREFIX.bin has 0 bytes, but PREFIX.idx puts sequence 0 at byte 0 with 3 tokens of 1 bytes; the two do not "
            "belong together or the .bin was cut short: write both again",
        ),
        (
            {"offsets": (0, 2**63 - 1, 4)},
            "PREFIX.bin has 6 bytes, but PREFIX.idx puts sequence 1 at byte 9223372036854775807 with 1 tokens of "
            "1 bytes; the two do not belong together or the .bin was cut short: write both again",
        ),
        (
            {"offsets": (0, -3, 4)},
            "PREFIX.idx puts sequence 1 at byte -3 with 1 tokens of 1 bytes, which cannot be; it is damaged: "
            "write it again",
        ),
        (
            {"lengths": (3, -1, 2)},
            "PREFIX.idx puts sequence 1 at byte 3 with -1 tokens of 1 bytes, which cannot be; it is damaged: "
            "write it again",
        ),
        (
            {"code": 8, "lengths": (1, 1, 1), "offsets": (0, 3, 4)},
            "PREFIX.idx puts sequence 1 at byte 3 with 1 tokens of 2 bytes, which cannot be; it is damaged: "
            "write it again",
        ),
        (
            {"lengths": (), "offsets": (), "bounds": (0,), "tokens": b""},
            "PREFIX.idx lists not one token; write it again from text that is not empty",
        ),
        (
            {"lengths": (0, 0), "offsets": (0, 0), "bounds": (0, 2), "tokens": b""},
            "PREFIX.idx lists not one token; write it again from text that is not empty",
        ),
    ],
)
def test_damaged_files(write_index, changes, expected):
    assert message_of(write_index(**changes)) == expected


@pytest.mark.parametrize(
    ("bounds", "shown"),
    [
        ((), "none"),
        ((1, 3), "from 1 to 3"),
        ((0, 2), "from 0 to 2"),
        ((0, 4, 3), "from 0 to 3"),
        ((0,), "from 0 to 0"),
        ((0, 2**63 - 1, -2, 3), "from 0 to 3"),
    ],
)
def test_document_bounds_that_make_no_sense(write_index, bounds, shown):
    assert message_of(write_index(bounds=bounds)) == (
        f"PREFIX.idx has document bounds ({shown}) that do not rise from 0 to its 3 sequences; "
        "it is damaged: write it again"
    )


@pytest.mark.parametrize("kept", [0, 10, 33])
def test_index_cut_short_inside_its_header(write_index, kept):
    prefix = write_index()
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:kept])
    assert message_of(prefix) == (
        f"PREFIX.idx has {kept} bytes, less than the header of an index; it was cut short: write it again"
    )


@pytest.mark.parametrize("kept", [34, 60, 93])
def test_index_cut_short_after_its_header(write_index, kept):
    prefix = write_index()
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:kept])
    assert re.match(rf"PREFIX\.idx has {kept} bytes, but an index of 3 sequences .* has 94; it is", message_of(prefix))


def test_sequence_count_beyond_any_file(write_index):
    prefix = write_index()
    path = Path(f"{prefix}.idx")
    path.write_bytes(path.read_bytes()[:18] + b"\xff" * 8 + path.read_bytes()[26:])
    assert message_of(prefix).startswith("PREFIX.idx has 94 bytes, but an index of 18446744073709551615 sequences")
