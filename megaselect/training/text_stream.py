"""Text from tokens that come one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from megaselect.data.tokenizer import Tokenizer

_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of ids that come one at a time, as far as later ones cannot change it.

    A character may be spelt by several ids, as the bytes of its UTF-8; it is held back until it is whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(prompt)
        self._shown = len(tokenizer.decode(self._ids))

    def add(self, token: int) -> str:
        """What is certain now and was not before."""
        self._ids.append(token)
        return self._new(self._tokenizer.decode(self._ids).rstrip(_UNDECODABLE))

    def rest(self) -> str:
        """What was held back and stays undecodable."""
        return self._new(self._tokenizer.decode(self._ids))

    def _new(self, text: str) -> str:
        new = text[self._shown :]
        self._shown += len(new)
        return new
