"""The error of a rule that settings break, before it is known where they came from."""

from __future__ import annotations

from collections.abc import Callable

from megaselect.errors import ConfigError


class SettingError(ConfigError):
    """A refused value or contradiction; `names` are the dotted names of the settings that take part in it."""

    def __init__(self, message: str, *names: str) -> None:
        super().__init__(message)
        self.names = names


def located(parse: Callable[[], object], *names: str) -> None:
    """What `parse` refuses, as an error of the settings `names`."""
    try:
        parse()
    except ConfigError as error:
        raise SettingError(str(error), *names) from None
