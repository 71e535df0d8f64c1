"""The format, checked against bytes written by hand; then our writer against our reader and against those bytes."""

import os
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from megaselect.data.indexed_dataset import IndexedDataset, IndexedDatasetWriter
from megaselect.errors import DataError


@pytest.mark.parametrize(
    ("code", "letter", "values"),
    [
        (1, "B", [0, 255, 7]),
        (2, "b", [-128, 127, 7]),
        (3, "h", [-32768, 32767, 7]),
        (4, "i", [-(2**31), 2**31 - 1, 7]),
        (5, "q", [-(2**63), 2**63 - 1, 7]),
        (8, "H", [0, 65535, 7]),
    ],
)
def test_every_integer_dtype_is_read(write_index, code, letter, values):
    size = struct.calcsize(letter)
    dataset = IndexedDataset(write_index(struct.pack(f"<3{letter}", *values), (1, 2), (0, size), (0, 1, 2), code=code))
    assert dataset.tokens.tolist() == values
    assert [sequence.tolist() for sequence in dataset] == [values[:1], values[1:]]
    assert dataset.dtype == np.dtype(f"<{letter}")


def test_sequences_and_documents(write_index):
    dataset = IndexedDataset(write_index())
    assert len(dataset) == 3
    assert dataset.sequence_lengths.tolist() == [3, 1, 2]
    assert dataset.document_bounds.tolist() == [0, 2, 3]
    assert dataset.num_documents == 2
    assert dataset[1].tolist() == [4]
    assert dataset[-1].tolist() == [5, 6]
    with pytest.raises(IndexError):
        dataset[3]


def test_adjacent_sequences_are_one_memmap_of_the_file(write_index):
    assert isinstance(IndexedDataset(write_index()).tokens, np.memmap)


def test_sequences_that_start_inside_the_file_and_leave_a_rest(write_index):
    dataset = IndexedDataset(write_index(lengths=(2, 1), offsets=(1, 3), bounds=(0, 1, 2)))
    assert dataset.tokens.tolist() == [2, 3, 4]


def test_the_stream_is_read_from_the_file(write_index):
    dataset = IndexedDataset(write_index(lengths=(2, 1), offsets=(1, 3), bounds=(0, 1, 2)))
    assert len(dataset.stream) == 3
    for start in range(4):
        for stop in range(start, 4):
            assert dataset.stream[start:stop].tolist() == [2, 3, 4][start:stop]


@pytest.mark.parametrize("offsets", [(0, 3, 4), (0, 3, 3)])
def test_a_file_that_is_cut_short_after_it_was_opened(write_index, offsets):
    prefix = write_index(offsets=offsets)
    stream = IndexedDataset(prefix).stream
    os.truncate(f"{prefix}.bin", 4)
    assert stream[0:4].tolist() == [1, 2, 3, 4]
    with pytest.raises(DataError) as caught:
        stream[3:6]
    asked = {(0, 3, 4): "3 from byte 3", (0, 3, 3): "2 from byte 3"}[offsets]
    assert str(caught.value) == (
        f"{prefix}.bin was cut short after it was opened: it has 4 bytes, and {asked} on are needed; "
        "write it again, with its .idx"
    )


def test_modes_of_multimodal_datasets_are_ignored(write_index):
    assert IndexedDataset(write_index(trailer=b"\0\1\0")).tokens.tolist() == [1, 2, 3, 4, 5, 6]


def test_empty_sequences_are_allowed(write_index):
    dataset = IndexedDataset(write_index(lengths=(0, 6, 0), offsets=(0, 0, 6)))
    assert dataset.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert dataset[2].tolist() == []


@pytest.mark.parametrize(
    ("lengths", "offsets", "stream"),
    [
        pytest.param((2, 3, 1), (4, 0, 3), [5, 6, 1, 2, 3, 4], id="reordered"),
        pytest.param((2, 1, 1), (0, 3, 5), [1, 2, 4, 6], id="filtered"),
        pytest.param((2, 2, 0, 2), (0, 0, 3, 1), [1, 2, 1, 2, 2, 3], id="repeated"),
    ],
)
def test_scattered_sequences_still_give_the_token_stream(write_index, lengths, offsets, stream):
    offsets = [2 * offset for offset in offsets]
    prefix = write_index(struct.pack("<6H", *range(1, 7)), lengths, offsets, (0, len(lengths)), code=8)
    dataset = IndexedDataset(prefix)
    for tokens in (dataset.tokens, dataset.stream):
        assert len(tokens) == len(stream)
        for start in range(len(stream) + 1):
            for stop in range(start, len(stream) + 1):
                assert tokens[start:stop].tolist() == stream[start:stop]


def test_writer_writes_the_bytes_of_the_format(tmp_path, write_index):
    with IndexedDatasetWriter(tmp_path / "ours", vocab_size=100) as writer:
        writer.add_document([1, 2, 3])
        writer.add_document(np.array([99]))
    expected = write_index(struct.pack("<4H", 1, 2, 3, 99), (3, 1), (0, 6), (0, 1, 2), code=8)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"ours{suffix}").read_bytes() == Path(f"{expected}{suffix}").read_bytes()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_499, "<u2"), (65_500, "<i4"), (2**31 - 1, "<i4")])
def test_dtype_follows_the_vocabulary_and_its_last_id_survives(tmp_path, vocab_size, dtype):
    with IndexedDatasetWriter(tmp_path / "text", vocab_size) as writer:
        writer.add_document([0, vocab_size - 1])
    dataset = IndexedDataset(tmp_path / "text")
    assert dataset.dtype == np.dtype(dtype)
    assert dataset.tokens.tolist() == [0, vocab_size - 1]


def test_a_document_may_be_written_in_parts(tmp_path):
    with IndexedDatasetWriter(tmp_path / "text", vocab_size=10) as writer:
        writer.extend([1, 2])
        writer.extend([])
        writer.extend([3])
        writer.end_document()
        writer.end_document()
        writer.extend([4])
    dataset = IndexedDataset(tmp_path / "text")
    assert [sequence.tolist() for sequence in dataset] == [[1, 2, 3], [], [4]]
    assert dataset.document_bounds.tolist() == [0, 1, 2, 3]


def test_nothing_has_its_real_name_before_the_end(tmp_path):
    writer = IndexedDatasetWriter(tmp_path / "text", vocab_size=10)
    writer.add_document([1])
    assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    writer.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.bin", "text.idx"]


def test_a_block_that_raises_leaves_nothing_behind(tmp_path):
    with suppress(KeyboardInterrupt), IndexedDatasetWriter(tmp_path / "text", vocab_size=10) as writer:
        writer.add_document([1])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_new_dataset_replaces_the_old_one(tmp_path):
    for token in (1, 2):
        with IndexedDatasetWriter(tmp_path / "text", vocab_size=10) as writer:
            writer.add_document([token] * token)
    assert IndexedDataset(tmp_path / "text").tokens.tolist() == [2, 2]


@pytest.mark.parametrize("wrong", [-1, 10])
def test_ids_outside_the_vocabulary_are_refused(tmp_path, wrong):
    message = rf"^token id {wrong} is outside the vocabulary of 10 that .*text\.bin is written for$"
    with pytest.raises(DataError, match=message), IndexedDatasetWriter(tmp_path / "text", vocab_size=10) as writer:
        writer.add_document([1, wrong, 2])
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_without_tokens_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^nothing to write to .*text\.bin: there is not one token$"):
        IndexedDatasetWriter(tmp_path / "text", vocab_size=10).finish()
    assert list(tmp_path.iterdir()) == []


# Stands in for a full disk: no file may grow beyond 1,000 bytes.
WRITE_WITHOUT_ROOM = """
import resource, sys
from megaselect.data.indexed_dataset import IndexedDatasetWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with IndexedDatasetWriter(sys.argv[1], vocab_size=10) as writer:
        for _ in range(int(sys.argv[2])):
            writer.add_document([1] * int(sys.argv[3]))
except OSError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize("num_documents", [1, 100])
def test_a_disk_that_fills_up(tmp_path, start_python, num_documents):
    child = start_python(WRITE_WITHOUT_ROOM, tmp_path / "text", num_documents, 600)
    assert child.communicate() == ("File too large\n", "")
    assert list(tmp_path.iterdir()) == []


def test_new_tokens_are_never_paired_with_an_old_index(tmp_path, start_python):
    with IndexedDatasetWriter(tmp_path / "text", vocab_size=10) as writer:
        writer.add_document([7])
    # 100 documents of one token: room for the 200 bytes of the .bin, but not for the 2,000 of the .idx.
    child = start_python(WRITE_WITHOUT_ROOM, tmp_path / "text", 100, 1)
    assert child.communicate() == ("File too large\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["text.bin"]
