"""Bytes, times and steps as people write them. Needs nothing but Python."""

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


def parse_duration(text: str, flag: str) -> float:
    """Seconds of `8h`, `90m`, `1h30m` or `45s`. Raises ConfigError, which names `flag`, for others and for 0."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    seconds = (
        sum(int(count or 0) * unit for count, unit in zip(match.groups(), (86400, 3600, 60, 1), strict=True))
        if match
        else 0
    )
    if not seconds:
        raise ConfigError(f"{flag} {text}: must be a time such as 8h, 90m, 1h30m, 2d or 45s")
    return float(seconds)


def parse_steps(text: str, flag: str) -> range:
    """Steps, counted from 1, of `10` or `10-12`, the last one included. Raises ConfigError, which names `flag`."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise ConfigError(f"{flag} {text}: must be a step, such as 10, or a range of steps, such as 10-12")
    return range(first, last + 1)
