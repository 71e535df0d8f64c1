"""How values of a user's file stand in a message: in one line, short, and made in no time whatever they are."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megaselect.errors import ConfigError

LONGEST_VALUE, LONGEST_MESSAGE = 60, 1000  # characters
_LARGEST_NUMBER_BITS = 200


class _Brief(reprlib.Repr):
    """A list of lists of lists is not written out, and Python refuses to write numbers of thousands of digits."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2

    def repr_str(self, x: str, level: int) -> str:
        """Its beginning."""
        return repr(x[:LONGEST_VALUE])

    def repr_int(self, x: int, level: int) -> str:
        """The number, or how long it is."""
        bits = x.bit_length()
        return repr(x) if bits <= _LARGEST_NUMBER_BITS else f"a number of {bits} bits"


def format_value(value: Any) -> str:
    """A value as Python writes it, cut short."""
    text = _Brief().repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def one_line(message: str) -> str:
    """A message without line breaks and control characters, cut short."""
    printable = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[: 2 * LONGEST_MESSAGE])
    return printable if len(printable) <= LONGEST_MESSAGE else f"{printable[: LONGEST_MESSAGE - 4]} ..."


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What the user wrote may stand in an error in full: it shall not break the line."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(one_line(str(error))) from None
