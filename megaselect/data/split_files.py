"""A split while it is written: token ids and sequence lengths, each appended to a file that can be gone on with."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megaselect.data.encoding import SplitTokens
from megaselect.data.indexed_dataset import MAX_SEQUENCE_TOKENS, write_index
from megaselect.errors import DataError
from megaselect.files import publish

_LENGTH_DTYPE = np.dtype("<i4")


@dataclass
class _Position:
    """How much of the files is settled. continued: see indexed_dataset.write_index."""

    tokens: int = 0
    sequences: int = 0
    open_tokens: int = 0
    continued: list[int] = field(default_factory=list)


class SplitFile:
    """Appends to STEM.bin and STEM.lengths, then makes STEM.idx. `position`: of an earlier object, to go on from."""

    def __init__(self, stem: Path, dtype: np.dtype, position: dict[str, Any] | None = None) -> None:
        self._bin_path, self._lengths_path, self._idx_path = (
            Path(f"{stem}.{suffix}") for suffix in ("bin", "lengths", "idx")
        )
        self._dtype = dtype
        self._at = _Position(**position) if position else _Position()
        self._bin = _open_at(self._bin_path, self._at.tokens * dtype.itemsize)
        self._lengths = _open_at(self._lengths_path, self._at.sequences * _LENGTH_DTYPE.itemsize)

    def append(self, added: SplitTokens) -> None:
        """Append what a chunk adds."""
        self._bin.write(added.tokens)
        self._at.tokens += len(added.tokens) // self._dtype.itemsize
        lengths = list(added.closed)
        if lengths:
            lengths[0] += self._at.open_tokens
            self._at.open_tokens = 0
            sequences = [length for document in lengths for length in self._sequences(document)]
            self._lengths.write(np.asarray(sequences, _LENGTH_DTYPE).tobytes())
        self._at.open_tokens += added.open_tokens

    def sync(self) -> dict[str, Any]:
        """Flush what was appended to disk; the position to go on from."""
        for file in (self._bin, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        return asdict(self._at)

    def close(self) -> None:
        """Close the files, whose content stays."""
        for file in (self._bin, self._lengths):
            # On a full disk, closing fails once more, for what is still buffered.
            with suppress(OSError):
                file.close()

    def write_index(self) -> None:
        """Write STEM.idx; the files must be in sync and not empty."""
        lengths = np.memmap(self._lengths_path, _LENGTH_DTYPE, mode="r")
        with self._idx_path.open("wb") as file:
            write_index(file, self._dtype, lengths, self._at.continued)
        publish(self._idx_path, self._idx_path)

    def _sequences(self, document_tokens: int) -> Iterable[int]:
        """Lengths of the sequences that a document takes: the format cannot express one of 2**31 tokens."""
        while document_tokens > MAX_SEQUENCE_TOKENS:
            self._at.sequences += 1
            self._at.continued.append(self._at.sequences)
            yield MAX_SEQUENCE_TOKENS
            document_tokens -= MAX_SEQUENCE_TOKENS
        self._at.sequences += 1
        yield document_tokens


def _open_at(path: Path, size: int) -> BinaryIO:
    """Open for writing at the end of the first `size` bytes; what follows was written after the last sync."""
    file = path.open("rb+" if size else "wb")
    if os.fstat(file.fileno()).st_size < size:
        file.close()
        raise DataError(f"{path} is shorter than when it was written; delete {path.parent} and run the command again")
    file.truncate(size)
    file.seek(size)
    return file
