"""Standard output that fails: the disk of a log file is full, or the reader of a pipe has left."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TextIO


class LossyOutput:
    """A text stream that drops what it cannot write, so that a run outlives its console.

    Every write is tried anew, since room may come back; the first failure is told on `errors`. A pipe without a reader
    is led to nowhere for good.
    """

    def __init__(self, stream: TextIO, errors: TextIO) -> None:
        self._stream, self._errors, self._told = stream, errors, False
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        """The number of characters, written or not."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Write, or drop, what was not written yet."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def _drop(self, error: OSError) -> None:
        drop_unwritten(self._stream, for_good=isinstance(error, BrokenPipeError))
        if self._told:
            return
        self._told = True
        try:
            note = f"note: standard output: {error.strerror}; the run goes on, and what cannot be printed is lost"
            print(note, file=self._errors, flush=True)
        except OSError:  # as where both go to one file
            drop_unwritten(self._errors, for_good=isinstance(error, BrokenPipeError))


def drop_unwritten(stream: TextIO, for_good: bool) -> None:
    """Empty a stream's buffers into nowhere. Python would try them again at exit, with a traceback and exit code 120.

    for_good: what is written later goes there too.
    """
    with suppress(OSError):  # a stream without a descriptor
        descriptor = stream.fileno()
        before, nowhere = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, descriptor)
            stream.flush()
            if not for_good:
                os.dup2(before, descriptor)
        finally:
            os.close(before)
            os.close(nowhere)
