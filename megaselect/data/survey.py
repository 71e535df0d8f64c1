"""The first reading of a corpus: every file's SHA-256 and the length of its text, found in one pass."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from megaselect.data.compressed import decompressed

_READ_BYTES = 1024 * 1024


class Survey(NamedTuple):
    """sha256: of the file as it lies on disk. num_bytes: of its text, once decompressed."""

    sha256: str
    num_bytes: int


def survey(path: Path, advance: Callable[[int], None]) -> Survey:
    """Read a whole file. advance: called with the bytes of it that were read.

    Raises DataError where a compressed file is damaged anywhere.
    """
    with path.open("rb") as file:
        hashing = _HashingFile(file)
        text = decompressed(path, hashing)
        num_bytes = num_advanced = 0
        while data := text.read(_READ_BYTES):
            num_bytes += len(data)
            advance(hashing.num_read - num_advanced)
            num_advanced = hashing.num_read
        return Survey(hashing.sha256.hexdigest(), num_bytes)


class _HashingFile:
    """A file that is read from its beginning to its end, hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self.num_read += len(data)
        return data

    def close(self) -> None:
        self._file.close()
