"""Lays overrides over a mapping and remembers which setting came from where, so that errors can say so."""

from collections.abc import Mapping
from typing import Any

from megaselect.config.recompute import SETTINGS_OF_MODE
from megaselect.config.setting_error import SettingError
from megaselect.errors import ConfigError


class Origins:
    """source: what the mapping is called in messages. flags: dotted name -> the flag that set it."""

    def __init__(self, source: str, flags: Mapping[str, str]) -> None:
        self.source = source
        self.flags = flags
        self.names_in_source: set[str] = set()

    def locate(self, error: SettingError) -> ConfigError:
        """The same message, led by the flags and the file that the error's settings came from."""
        flags = list(dict.fromkeys(self.flags[name] for name in error.names if name in self.flags))
        elsewhere = any(name in self.names_in_source for name in error.names)
        if not flags:
            return ConfigError(f"{self.source}: {error}")
        return ConfigError(f"{' and '.join(flags)}{f' with {self.source}' if elsewhere else ''}: {error}")


def merge(mapping: Mapping[str, Any], overrides: Mapping[str, Any], origins: Origins) -> dict[str, Any]:
    """A copy of the nested mapping with the dotted overrides laid over it; fills origins.names_in_source.

    A section with nothing under it counts as given and empty.
    """
    merged: dict[str, Any] = {}
    for section, values in mapping.items():
        merged[section] = dict(values) if isinstance(values, Mapping) else {} if values is None else values
    if isinstance(merged.get("recompute"), dict):
        _drop_other_modes(merged["recompute"], overrides)
    for dotted, value in overrides.items():
        section, _, name = dotted.partition(".")
        values = merged.setdefault(section, {} if name else value)
        if name and isinstance(values, dict):
            values[name] = value
    given = {f"{section}.{name}" for section, values in merged.items() if isinstance(values, dict) for name in values}
    origins.names_in_source = given - set(overrides)
    return merged


def _drop_other_modes(recompute: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """`--recompute none` over a file that tunes full must work: what belongs to another mode goes with that mode."""
    mode = overrides.get("recompute.mode")
    if isinstance(mode, str) and mode in SETTINGS_OF_MODE:
        for name in {name for names in SETTINGS_OF_MODE.values() for name in names}.difference(SETTINGS_OF_MODE[mode]):
            recompute.pop(name, None)
    if overrides.get("recompute.method") == "sqrt":
        recompute.pop("num_layers", None)
