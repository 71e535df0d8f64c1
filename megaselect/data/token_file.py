"""Tokens of a .bin, read and not mapped: a file that is cut short meanwhile is an error here, and the end of a process
that has it in its memory."""

import os
import weakref
from pathlib import Path

import numpy as np

from megaselect.data.os_errors import explain_os_errors
from megaselect.errors import DataError


class TokenFile:
    """Tokens first, …, first + count - 1 of a file of `dtype`: `len()` and `[start:stop]`, a new 1-D array each time.

    Reading raises DataError, naming the file, where it has become shorter, or cannot be read.
    """

    def __init__(self, path: Path, dtype: np.dtype, first: int, count: int) -> None:
        self._path, self._dtype, self._first, self._count = path, dtype, first, count
        with explain_os_errors("read the dataset", "name one whose .bin and .idx can be read"):
            self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, window: slice) -> np.ndarray:
        start, stop, _ = window.indices(self._count)
        num_bytes = max(stop - start, 0) * self._dtype.itemsize
        offset = (self._first + start) * self._dtype.itemsize
        data = self._read(num_bytes, offset)
        if len(data) < num_bytes:
            raise DataError(
                f"{self._path} was cut short after it was opened: it has {os.fstat(self._file).st_size:,} bytes, and "
                f"{num_bytes:,} from byte {offset:,} on are needed; write it again, with its .idx"
            )
        return np.frombuffer(data, self._dtype)

    def _read(self, num_bytes: int, offset: int) -> bytes:
        with explain_os_errors(f"read {self._path}", "see that its disk is there and run the same command again"):
            data = os.pread(self._file, num_bytes, offset)
            # Linux reads no more than 2 GiB at a time.
            while len(data) < num_bytes and (more := os.pread(self._file, num_bytes - len(data), offset + len(data))):
                data += more
        return data
