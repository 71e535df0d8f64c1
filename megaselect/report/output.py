"""Standard output that fails: it cannot encode a sign, the disk of a log file is full, or a pipe's reader has left."""

from __future__ import annotations

import codecs
import io
import os
from contextlib import suppress
from typing import TextIO

# Name of the way, known to Python's codecs, in which signs are written that an encoding lacks.
REPLACE_SIGNS = "megaselect.signs"
_PLAIN = {
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "✓": "ok",
    "✗": "NO",
    "“": '"',
    "”": '"',
    "’": "'",
}


def replace_what_cannot_be_encoded(stream: TextIO) -> None:
    """From now on signs that the stream's encoding lacks are written in ASCII, or as ?, where Python would fail.

    Bytes of file names that are no text stay those bytes. Where the user has chosen another way (PYTHONIOENCODING), it
    stays.
    """
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors=REPLACE_SIGNS)


def _replace_sign(error: UnicodeError) -> tuple[str | bytes, int]:
    """For codecs.register_error: what stands for the first sign that cannot be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if 0xDC80 <= ord(sign) <= 0xDCFF:  # how Python writes a byte that is no text
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return _PLAIN.get(sign, "?"), error.start + 1


codecs.register_error(REPLACE_SIGNS, _replace_sign)


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
