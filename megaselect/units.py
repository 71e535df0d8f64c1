"""Bytes as people write them. Needs nothing but Python."""

from __future__ import annotations

import re
from decimal import Decimal

from megaselect.errors import ConfigError

MIB_BYTES, GIB_BYTES = 2**20, 2**30
_UNITS = {"MiB": MIB_BYTES, "GiB": GIB_BYTES, "MB": 10**6, "GB": 10**9}


def size(count: int) -> str:
    """Bytes in MiB or GiB, three digits or more."""
    value, unit = (count / GIB_BYTES, "GiB") if count >= GIB_BYTES else (count / MIB_BYTES, "MiB")
    decimals = 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{decimals}f} {unit}"


def parse_size(text: str, flag: str) -> int:
    """Bytes of `24GiB`, `512 MiB` or `16GB`. Raises ConfigError, which names `flag`, for anything else, and for 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    units = {unit.lower(): count for unit, count in _UNITS.items()}
    if match is None or match[2].lower() not in units or not float(match[1]):
        raise ConfigError(f"{flag} {text}: must be a size such as 24GiB; the units are {', '.join(_UNITS)}")
    return int(Decimal(match[1]) * units[match[2].lower()])
