"""The host's memory. No torch."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")  # this process's size and, sixth, its private writable memory, in pages


def available_bytes() -> int:
    """What Linux says can be had without swapping (elsewhere all physical memory), or what this process's own limits
    (ulimit -v, ulimit -d) leave to it, if that is less.
    """
    return max(min([_available_on_machine(), *_left_by_limits()]), 0)


def _available_on_machine() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_by_limits() -> list[int]:
    if not _STATM.is_file():
        return []
    pages = _STATM.read_text().split()
    used = {resource.RLIMIT_AS: int(pages[0]), resource.RLIMIT_DATA: int(pages[5])}
    limits = {kind: resource.getrlimit(kind)[0] for kind in used}
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return [limit - used[kind] * page_bytes for kind, limit in limits.items() if limit != resource.RLIM_INFINITY]


def resident_bytes() -> int | None:
    """The process's resident size; None where the system does not say."""
    with contextlib.suppress(OSError):
        pages = int(_STATM.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_resident_bytes() -> int:
    """The process's largest resident size so far."""
    # First /proc: getrusage also counts, on Linux, what the process that started this one held at that moment.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
