"""Bytes, times and steps as people write them. Needs nothing but Python."""

from __future__ import annotations

import re
from decimal import Decimal

from megaselect.errors import ConfigError

KIB_BYTES, MIB_BYTES, GIB_BYTES = 2**10, 2**20, 2**30
# A bare letter counts as Docker, Slurm and systemd count it, in powers of 1024; KB to TB are those of 1000.
_UNITS = {
    spelling.lower(): base**power
    for power, letter in enumerate("KMGT", start=1)
    for spelling, base in ((letter, 1024), (f"{letter}i", 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}


def size(count: int) -> str:
    """A count of bytes in the largest of GiB, MiB and KiB that is not more than it, with three digits or more.

    Less than a KiB is in bytes.
    """
    for unit, unit_bytes in (("GiB", GIB_BYTES), ("MiB", MIB_BYTES), ("KiB", KIB_BYTES)):
        if count >= unit_bytes:
            return f"{count / unit_bytes:.2f} {unit}"
    return f"{count} byte{'' if count == 1 else 's'}"


def parse_size(text: str, flag: str) -> int:
    """Bytes of `24GiB`, `24G`, `1.5 TiB` or `16GB`, in either case; see _UNITS.

    Raises ConfigError, which names `flag`, for anything else, and for 0.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip(), re.ASCII)
    count = int(Decimal(match[1]) * _UNITS.get(match[2].lower(), 0)) if match else 0
    if not count:
        raise ConfigError(
            f"{flag} {text}: must be a size such as 24GiB; the units are KiB to TiB, K to T (the same), KB to TB"
        )
    return count


def size_notes(text: str, flag: str) -> list[str]:
    """What a size was taken as, in a note, where its unit may mean two things: 24G and 24GB. Raises ConfigError."""
    if text.strip().lower().endswith("ib"):
        return []
    count = parse_size(text, flag)
    return [f"note: {flag} {text} is read as {count:,} bytes, which are {size(count)}"]


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
