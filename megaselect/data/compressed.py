"""Text files as their bytes, whether they lie on disk as they are, as .gz or .zst, or as one within the other."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import zstandard

from megaselect.data.zstd_frames import ZstdFrames
from megaselect.errors import DataError

if TYPE_CHECKING:
    from typing_extensions import Buffer

SUFFIXES = (".gz", ".zst")

_BUFFER_BYTES = 128 * 1024

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


def compression(name: str) -> str:
    """The suffixes of a file's name that tell how it is compressed, such as .gz, in lower case; "" without any."""
    found, rest = "", name.lower()
    while suffix := next((suffix for suffix in SUFFIXES if rest.endswith(suffix)), ""):
        found, rest = suffix + found, rest.removesuffix(suffix)
    return found


def open_text(path: Path, start: int = 0) -> BinaryIO:
    """The text of a file from byte `start` on, decompressed by its suffixes; in memory of a fixed size.

    Reading raises DataError, naming the file, where a compressed file is damaged or ends too soon.
    """
    file = path.open("rb", _BUFFER_BYTES)
    if not compression(path.name):
        file.seek(start)
        return file
    text = decompressed(path, file)
    while start > 0:
        start -= len(text.read(min(start, _BUFFER_BYTES))) or start
    return text


def decompressed(path: Path, compressed: BinaryIO) -> BinaryIO:
    """Text of the open file `compressed`, whose name is `path`."""
    for suffix in reversed(re.findall(r"\.\w+", compression(path.name))):
        compressed = io.BufferedReader(_DecompressedFile(path, suffix, compressed), _BUFFER_BYTES)
    return compressed


class _DecompressedFile(io.RawIOBase):
    """Turns what the decompressors raise into one line that names the file."""

    def __init__(self, path: Path, suffix: str, compressed: BinaryIO) -> None:
        self._path, self._compressed = path, compressed
        self._text: ZstdFrames | gzip.GzipFile = (
            ZstdFrames(path, compressed) if suffix == ".zst" else gzip.GzipFile(fileobj=compressed, mode="rb")
        )

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        room = memoryview(buffer).cast("B")
        try:
            data = self._text.read(len(room))
        except _DAMAGE as error:
            raise DataError(
                f"{self._path} is damaged or was cut short ({error}); compress it again, or get it anew"
            ) from None
        room[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._compressed.close()
        super().close()
