"""Zstandard files, frame after frame, in memory of a fixed size and the window that a frame asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import zstandard

from megaselect.errors import DataError
from megaselect.host_memory import available_bytes

# Four bytes of zstandard can stand for 128 KiB of text: more input at a time could become gigabytes at once.
_INPUT_BYTES = 1024

_LONGEST_HEADER = 18

# That of --long=31, the longest there is; and that of --ultra -22, which is taken as the memory that everyone has.
_LONGEST_WINDOW, _USUAL_WINDOW = 2**31, 2**27


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int) -> bytes: ...


class ZstdFrames:
    """Reads frame after frame, as pzstd and `cat` write them; unlike zstandard's reader, knows when the last is cut.

    path: for messages. Reading raises DataError for a frame that cannot be read here, and ZstdError or EOFError for one
    that is damaged.
    """

    def __init__(self, path: Path, compressed: Readable) -> None:
        self._path, self._compressed = path, compressed
        self._input = b""
        self._text = memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._window = 0

    def read(self, size: int) -> memoryview:
        """Up to `size` bytes of the text; none at its end."""
        while not self._text and self._fill():
            pass
        data, self._text = self._text[:size], self._text[size:]
        return data

    def _fill(self) -> bool:
        """Decompress a little more, perhaps to no text yet; False at the end of the file."""
        self._input = self._input or self._compressed.read(_INPUT_BYTES)
        if not self._input:
            if self._frame is not None:
                raise EOFError("it ends within a frame")
            return False
        frame = self._frame = self._frame or self._begin_frame()
        self._text = memoryview(self._decompress(frame, self._input))
        self._input = frame.unused_data
        if frame.eof:
            self._frame = None
        return True

    def _begin_frame(self) -> zstandard.ZstdDecompressionObj:
        if len(self._input) < _LONGEST_HEADER:
            self._input += self._compressed.read(_INPUT_BYTES)
        try:
            header = zstandard.get_frame_parameters(self._input)
        except zstandard.ZstdError:
            header = None  # decompression says what is wrong
        self._window = header.window_size if header else 0
        if header and header.dict_id:
            raise DataError(
                f"{self._path} was compressed with a dictionary (number {header.dict_id}) that is not in it; "
                "decompress it with that (zstd -d -D DICTIONARY), and give the text"
            )
        if self._window > _USUAL_WINDOW and self._window > (available := available_bytes()):
            raise DataError(self._no_room(f", and {available:,} are free"))
        return zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()

    def _decompress(self, frame: zstandard.ZstdDecompressionObj, data: bytes) -> bytes:
        try:
            return frame.decompress(data)
        except MemoryError:
            raise DataError(self._no_room("")) from None
        except zstandard.ZstdError as error:
            if "Allocation" in str(error) or "too much memory" in str(error):
                raise DataError(self._no_room("")) from None
            if "corruption" in str(error):
                raise zstandard.ZstdError(f"{error}, or it was made with a dictionary that it does not name") from None
            raise

    def _no_room(self, available: str) -> str:
        return (
            f"{self._path} needs {self._window:,} bytes of memory to be decompressed, the window that it was "
            f"compressed with{available}; make room, or compress it again with a shorter one (zstd -d --long=31 -c "
            "FILE | zstd)"
        )
