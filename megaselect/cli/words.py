"""What is said of a word that is none of those a command knows. For the entry point: it imports Python's own alone."""

from collections.abc import Iterable
from difflib import get_close_matches

from megaselect.errors import ConfigError


def unknown_command(word: str, commands: Iterable[str]) -> ConfigError:
    """The error for a word in a command's place: the nearest of `commands`, or all where none is near."""
    *others, last = commands
    near = get_close_matches(word, [*others, last], n=1)
    return ConfigError(
        f"unknown command {word}; " + (f"did you mean {near[0]}?" if near else f"use {', '.join(others)} or {last}")
    )
