"""Datasets as PREFIX.bin and PREFIX.idx, read and written. The layout is in megaselect.data.index_file."""

import io
from array import array
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from megaselect.data.index_file import read_index, write_index
from megaselect.data.token_file import TokenFile
from megaselect.errors import DataError
from megaselect.files import partial_path, publish, write_atomically

# Megatron-LM's own threshold, below 2**16 to leave room for ids that are added to a vocabulary later.
_UINT16_VOCAB_LIMIT = 65_500
MAX_SEQUENCE_TOKENS = 2**31 - 1


class IndexedDataset:
    """Read-only view of PREFIX.bin and PREFIX.idx; nothing but the index's arrays is read before tokens are asked for.

    `len()` is the number of sequences, `[i]` the tokens of one (1-D array of the file's dtype).

    Raises DataError, naming the file and the value, when either file is missing, damaged or does not hold tokens.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.bin_path, self.idx_path = _bin_path(prefix), _idx_path(prefix)
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise DataError(f"{path} does not exist; {_remedy(str(prefix))}")
        index = read_index(self.idx_path, self.bin_path)
        self.dtype = index.dtype
        self.sequence_lengths = index.lengths
        self.document_bounds = index.bounds
        self._data = np.memmap(self.bin_path, index.dtype, mode="r", shape=_bin_items(self.bin_path, index.dtype))
        self._starts = index.offsets // index.dtype.itemsize  # [N] tokens

    def __len__(self) -> int:
        return len(self.sequence_lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        start = int(self._starts[index])
        return self._data[start : start + int(self.sequence_lengths[index])]

    @property
    def num_documents(self) -> int:
        return len(self.document_bounds) - 1

    @property
    def tokens(self) -> "np.ndarray | GatheredTokens":
        """All tokens, sequence after sequence: one memmap, or a gathering view where the sequences are not adjacent."""
        if self._is_adjacent:
            first, count = self._span
            return self._data[first : first + count]
        return GatheredTokens(self._data, self._starts, self.sequence_lengths)

    @property
    def stream(self) -> "TokenFile | GatheredTokens":
        """The same tokens for `len()` and `[start:stop]`, read each time: see TokenFile for what that is good for."""
        if self._is_adjacent:
            return TokenFile(self.bin_path, self.dtype, *self._span)
        data = TokenFile(self.bin_path, self.dtype, 0, len(self._data))
        return GatheredTokens(data, self._starts, self.sequence_lengths)

    @property
    def _is_adjacent(self) -> bool:
        return np.array_equal(self._starts[1:], self._starts[:-1] + self.sequence_lengths[:-1])

    @property
    def _span(self) -> tuple[int, int]:
        """Where adjacent sequences begin in the file, and how many tokens they have."""
        return int(self._starts[0]), int(self.sequence_lengths.sum(dtype=np.int64))


class GatheredTokens:
    """The token stream of an index that reorders, skips or repeats parts of its .bin (a shuffled or filtered subset).

    Supports what a sampler needs: `len()` and `[start:stop]` with 0 <= start <= stop <= len().
    """

    def __init__(self, data: np.ndarray | TokenFile, starts: np.ndarray, lengths: np.ndarray) -> None:
        self._data = data
        self._ends = np.cumsum(lengths, dtype=np.int64)  # of each sequence, in the stream
        self._shifts = starts - (self._ends - lengths)  # from the stream to the file

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, window: slice) -> np.ndarray:
        position, stop = window.start, window.stop
        parts = [self._data[:0]]
        sequence = int(np.searchsorted(self._ends, position, side="right"))
        while position < stop:
            end = min(int(self._ends[sequence]), stop)
            shift = int(self._shifts[sequence])
            parts.append(self._data[position + shift : end + shift])
            position = end
            sequence += 1
        return np.concatenate(parts)


class IndexedDatasetWriter:
    """Writes PREFIX.bin and PREFIX.idx, one sequence a document, in memory that grows by the index alone.

    Token ids are stored as u16 for vocabularies below 65,500, else as i32. Nothing appears under the real names before
    `finish`, and the .idx comes last: where there is an .idx, the dataset is whole. As a context manager it finishes
    at the end of the block, and leaves nothing behind if the block raises.
    """

    def __init__(self, prefix: str | Path, vocab_size: int) -> None:
        self._bin_path, self._idx_path = _bin_path(prefix), _idx_path(prefix)
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._lengths = array("i")
        self._open_length = 0
        self._partial = partial_path(self._bin_path)
        self._file: BinaryIO = self._partial.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self._discard()

    def add_document(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append one document of token ids in [0, vocab_size)."""
        self.extend(ids)
        self.end_document()

    def extend(self, ids: Sequence[int] | np.ndarray) -> None:
        """Append token ids to the document at the end, which `end_document` closes."""
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
            wrong = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise DataError(
                f"token id {wrong} is outside the vocabulary of {self._vocab_size} that {self._bin_path} is written for"
            )
        self._open_length += tokens.size
        if self._open_length > MAX_SEQUENCE_TOKENS:
            raise DataError(
                f"a document has more than {MAX_SEQUENCE_TOKENS:,} tokens, the most that the index of "
                f"{self._bin_path} can express; split its file"
            )
        self._file.write(tokens.astype(self._dtype).tobytes())

    def end_document(self) -> None:
        self._lengths.append(self._open_length)
        self._open_length = 0

    def finish(self) -> None:
        """Flush both files to disk and give them their real names, replacing an older dataset of that prefix."""
        if self._open_length:
            self.end_document()
        try:
            self._file.close()
            if not any(self._lengths):
                raise DataError(f"nothing to write to {self._bin_path}: there is not one token")
            # A reader must never pair the old index with the new tokens.
            self._idx_path.unlink(missing_ok=True)
            publish(self._partial, self._bin_path)
            index = io.BytesIO()
            write_index(index, self._dtype, np.asarray(self._lengths, dtype="<i4"))
            write_atomically(self._idx_path, index.getvalue())
        finally:
            self._discard()

    def _discard(self) -> None:
        # On a full disk, closing fails once more, for what is still buffered.
        with suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)


def token_dtype(vocab_size: int) -> np.dtype:
    """How token ids of a vocabulary are stored: u16 below 65,500 pieces, else i32."""
    return np.dtype("<u2" if vocab_size < _UINT16_VOCAB_LIMIT else "<i4")


def dataset_prefix(name: str) -> str:
    """The prefix, where `name` is that of one of a dataset's files; else the name itself."""
    stem, dot, suffix = name.rpartition(".")
    is_file = dot and suffix in ("bin", "idx", "json", "model") and not _idx_path(name).is_file()
    return stem if is_file and _idx_path(stem).is_file() else name


def _remedy(name: str) -> str:
    prefix = dataset_prefix(name)
    if prefix != name:
        return f"give the prefix without {name.removeprefix(prefix)}: {prefix}"
    return (
        "name the common prefix of a .bin and an .idx file, such as `megaselect data prepare` or Megatron-LM's "
        "preprocess_data.py writes"
    )


def _bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def _idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def _bin_items(bin_path: Path, dtype: np.dtype) -> int:
    return bin_path.stat().st_size // dtype.itemsize
