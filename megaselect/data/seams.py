"""Where a text can be cut so that its parts, encoded one after the other, give the tokens of the whole.

Byte-pair encoding joins two neighbours where what they make is a piece. Between two characters that no piece holds side
by side, nothing is ever joined, so what stands on one side has no bearing on the other. Models whose choice depends on
the whole text have no such places: unigram models add the scores of a text up in 32 bits, and how a sum is rounded
depends on everything before it.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import BinaryIO

from megaselect.data.documents import BLOCK_BYTES, RawBlock

# Text without a seam is held up to this size, which takes sentencepiece 35 bytes of memory a byte; then it is cut.
MAX_SEAMLESS_CHARACTERS = 4 * 1024 * 1024

# Sentencepiece makes the second of the first, so that they are one character to a piece.
_SPACES = " \u2581"

_UNDECODABLE = re.compile("[\udc80-\udcff]")


class Seams:
    """Of a model with these pieces.

    joins_unknown: the model has one token for a run of characters that are no pieces; such a run is not cut.
    """

    def __init__(self, pieces: Iterable[str], *, joins_unknown: bool) -> None:
        self._inside: set[str] = set()
        characters: set[str] = set()
        for piece in pieces:
            for left, right in pairwise(piece):
                self._inside.update(one + other for one in _spelt(left) for other in _spelt(right))
            if len(piece) == 1:
                characters.update(_spelt(piece))
        self._known = characters if joins_unknown else None

    def last(self, text: str, start: int) -> int:
        """The last position from `start` on at which the text can be cut; 0 where there is none."""
        for position in range(len(text) - 1, max(start, 1) - 1, -1):
            if text[position - 1 : position + 1] not in self._inside and self._between_tokens(text, position):
                return position
        return 0

    def cut(self, file: BinaryIO, num_bytes: int) -> Iterator[RawBlock]:
        """The next `num_bytes` of a file in blocks of about BLOCK_BYTES that end at seams.

        A block that ends elsewhere, after MAX_SEAMLESS_CHARACTERS, says so.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        left, text, searched, starts = num_bytes, "", 0, True
        while left > 0:
            read = file.read(min(BLOCK_BYTES, left))
            # A file that shrank since it was listed ends here instead of looping for ever.
            left = left - len(read) if read else 0
            text += decoder.decode(read, final=not left)
            end = self.last(_as_encoded(text), searched) if left else len(text)
            seamless = not end and len(text) > MAX_SEAMLESS_CHARACTERS
            if seamless:
                end = len(text)
            if end or not left:
                yield RawBlock(text[:end].encode(errors="surrogateescape"), not left, starts, seamless)
                text, starts = text[end:], False
            searched = len(text)

    def _between_tokens(self, text: str, position: int) -> bool:
        return self._known is None or text[position - 1] in self._known or text[position] in self._known


def cut_nowhere(file: BinaryIO, num_bytes: int) -> Iterator[RawBlock]:
    """The next `num_bytes` of a file as one block."""
    if num_bytes:
        yield RawBlock(file.read(num_bytes), True)


def _spelt(character: str) -> str:
    """How a text may write what a piece has."""
    return _SPACES if character in _SPACES else character


def _as_encoded(text: str) -> str:
    """As long as the text, with what is encoded in the place of bytes that were not UTF-8."""
    return text if text.isascii() else _UNDECODABLE.sub("\ufffd", text)
