"""Text files as their bytes, whether they lie on disk as they are, as .gz or as .zst."""

import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from megaselect.errors import DataError

SUFFIXES = (".gz", ".zst")

_BUFFER_BYTES = 128 * 1024

# Four bytes of zstandard can stand for 128 KiB of text: more input at a time could become gigabytes at once.
_ZSTD_INPUT_BYTES = 1024

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


class _Readable(Protocol):
    def read(self, size: int) -> bytes: ...


def open_text(path: Path, start: int = 0) -> BinaryIO:
    """The text of a file from byte `start` on, decompressed by its suffix; in memory of a fixed size.

    Reading raises DataError, naming the file, where a compressed file is damaged or ends too soon.
    """
    file = path.open("rb", _BUFFER_BYTES)
    if path.suffix.lower() not in SUFFIXES:
        file.seek(start)
        return file
    text = decompressed(path, file)
    while start > 0:
        start -= len(text.read(min(start, _BUFFER_BYTES))) or start
    return text


def decompressed(path: Path, compressed: BinaryIO) -> BinaryIO:
    """Text of the open .gz or .zst file `compressed`, whose name is `path`."""
    return io.BufferedReader(_DecompressedFile(path, compressed), _BUFFER_BYTES)


class _DecompressedFile(io.RawIOBase):
    """Turns what the decompressors raise into one line that names the file."""

    def __init__(self, path: Path, compressed: BinaryIO) -> None:
        self._path, self._compressed = path, compressed
        zstd = path.suffix.lower() == ".zst"
        self._text = _ZstdFrames(compressed) if zstd else gzip.GzipFile(fileobj=compressed, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        try:
            data = self._text.read(len(buffer))
        except _DAMAGE as error:
            raise DataError(
                f"{self._path} is damaged or was cut short ({error}); compress it again, or get it anew"
            ) from None
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._compressed.close()
        super().close()


class _ZstdFrames:
    """Reads frame after frame, as pzstd and `cat` write them; unlike zstandard's reader, knows when the last is cut."""

    def __init__(self, compressed: _Readable) -> None:
        self._compressed = compressed
        self._input = b""
        self._text = memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def read(self, size: int) -> memoryview:
        while not self._text and self._fill():
            pass
        data, self._text = self._text[:size], self._text[size:]
        return data

    def _fill(self) -> bool:
        """Decompress a little more, perhaps to no text yet; False at the end of the file."""
        self._input = self._input or self._compressed.read(_ZSTD_INPUT_BYTES)
        if not self._input:
            if self._frame is not None:
                raise EOFError("it ends within a frame")
            return False
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._text = memoryview(self._frame.decompress(self._input))
        self._input = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        return True
