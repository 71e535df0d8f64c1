"""The first reading of a corpus: every file's SHA-256 and the length of its text, found in one pass."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from megaselect.data.compressed import decompressed

if TYPE_CHECKING:
    from typing_extensions import Buffer

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
        text = decompressed(path, io.BufferedReader(hashing))
        num_bytes = num_advanced = 0
        while data := text.read(_READ_BYTES):
            num_bytes += len(data)
            advance(hashing.num_read - num_advanced)
            num_advanced = hashing.num_read
        return Survey(hashing.sha256.hexdigest(), num_bytes)


class _HashingFile(io.RawIOBase):
    """A file that is read from its beginning to its end, hashed on the way."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.num_read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        count = self._file.readinto(buffer)
        self.sha256.update(memoryview(buffer).cast("B")[:count])
        self.num_read += count
        return count
