import numpy as np
import pytest

from megaselect.data import split_files
from megaselect.data.encoding import SplitTokens
from megaselect.data.indexed_dataset import IndexedDataset
from megaselect.data.split_files import SplitFile
from megaselect.errors import DataError

DTYPE = np.dtype("<u2")


def tokens(first, closed, open_tokens):
    """A chunk with documents of the lengths `closed` and the beginning of another one."""
    total = sum(closed) + open_tokens
    added = SplitTokens(bytearray(np.arange(first, first + total, dtype=DTYPE).tobytes()), open_tokens=open_tokens)
    added.closed.extend(closed)
    return added


CHUNKS = [tokens(0, [3, 2], 1), tokens(6, [], 4), tokens(10, [1, 1], 0), tokens(12, [5], 0)]


def written(stem):
    return [stem.with_name(f"{stem.name}.{suffix}").read_bytes() for suffix in ("bin", "idx")]


def test_documents_grow_over_chunks(tmp_path):
    file = SplitFile(tmp_path / "train", DTYPE)
    for chunk in CHUNKS:
        file.append(chunk)
    file.sync()
    file.write_index()
    file.close()
    dataset = IndexedDataset(tmp_path / "train")
    assert [document.tolist() for document in dataset] == [
        [0, 1, 2],
        [3, 4],
        [5, 6, 7, 8, 9, 10],
        [11],
        [12, 13, 14, 15, 16],
    ]
    assert dataset.document_bounds.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("settled", range(5))
@pytest.mark.parametrize("lost", range(3))
def test_going_on_from_any_position_gives_the_same_bytes(tmp_path, settled, lost):
    whole = SplitFile(tmp_path / "whole", DTYPE)
    cut = SplitFile(tmp_path / "cut", DTYPE)
    for chunk in CHUNKS:
        whole.append(chunk)
    for chunk in CHUNKS[:settled]:
        cut.append(chunk)
    position = cut.sync()
    for chunk in (*CHUNKS, *CHUNKS)[settled : settled + lost]:
        cut.append(chunk)
    cut.close()
    resumed = SplitFile(tmp_path / "cut", DTYPE, position)
    for chunk in CHUNKS[settled:]:
        resumed.append(chunk)
    for file in (whole, resumed):
        file.sync()
        file.write_index()
        file.close()
    assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_a_document_too_long_for_one_sequence(tmp_path, monkeypatch):
    monkeypatch.setattr(split_files, "MAX_SEQUENCE_TOKENS", 4)
    file = SplitFile(tmp_path / "train", DTYPE)
    for chunk in (tokens(0, [3, 4, 9], 2), tokens(18, [6, 1], 0)):
        file.append(chunk)
    file.sync()
    file.write_index()
    file.close()
    dataset = IndexedDataset(tmp_path / "train")
    assert dataset.sequence_lengths.tolist() == [3, 4, 4, 4, 1, 4, 4, 1]
    assert dataset.document_bounds.tolist() == [0, 1, 2, 5, 7, 8]
    assert np.array_equal(dataset.tokens, np.arange(25))


def test_files_that_lost_bytes_are_not_gone_on_with(tmp_path):
    file = SplitFile(tmp_path / "train", DTYPE)
    file.append(CHUNKS[0])
    position = file.sync()
    file.close()
    (tmp_path / "train.bin").write_bytes(b"short")
    with pytest.raises(DataError) as caught:
        SplitFile(tmp_path / "train", DTYPE, position)
    assert str(caught.value) == (
        f"{tmp_path}/train.bin is shorter than when it was written; delete {tmp_path} and run the command again"
    )
