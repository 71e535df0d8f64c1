"""The host's memory. No torch."""

from __future__ import annotations

import os
from pathlib import Path


def available_bytes() -> int:
    """What Linux says can be had without swapping; elsewhere all physical memory."""
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
