"""The configs that ship with Megaselect, found by their names."""

import os
from pathlib import Path

from megaselect.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def find_config(name: str | Path, flag: str = "") -> Path:
    """The file at a path, or the config that ships under a bare name. Raises ConfigError where there is neither.

    flag: what the error says before the name, such as "--config ".
    """
    shipped = shipped_configs()
    # os.path says no to what cannot be a path, such as a name of thousands of characters, where pathlib raises.
    if str(name) in shipped and not os.path.isfile(name):
        return _relative_to_here(shipped[str(name)])
    if not os.path.lexists(name):
        raise ConfigError(f"{flag}{name}: no such file; the shipped configs are {', '.join(sorted(shipped))}")
    return Path(name)


def shipped_configs() -> dict[str, Path]:
    """Name -> file: inside the package where it was installed from a wheel, beside it in a source tree."""
    directory = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
    return {path.stem: path for path in directory.glob("*.yaml")}


def _relative_to_here(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
