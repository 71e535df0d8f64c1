"""Trains as `megaselect train` does, in a process that may take only so much more memory than a first small run took.

python short_of_memory.py MIB FLAG ... [-- FLAG ...]: a run for each list of flags; prints each one's exit code.
"""

import itertools
import os
import resource
import sys
from pathlib import Path

import torch

from megaselect.cli.main import main

MIB_BYTES = 2**20
STEADY_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(128 * 1024),
    "PYTHONFAULTHANDLER": "1",
}
HOLES, HOLE_BYTES = 640, 100 * 1024


def holes_for_what_is_small():
    """Room on the heap below the limit, in which no large tensor fits; it lasts as long as the fences returned.

    Without it NumPy may crash: where an iterator gets no buffers it raises MemoryError without holding the GIL. Fences
    are as large as holes: smaller ones found room elsewhere at times, and the holes between them became a single one.
    """
    blocks = [bytearray(HOLE_BYTES) for _ in range(2 * HOLES)]
    return blocks[1::2]


def limit_memory(mib):
    """Of private writable memory, touched or not, beyond what the process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + int(mib * MIB_BYTES)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def run_each(mib, runs):
    torch.set_num_threads(1)
    main(["train", *runs[0], "--max-steps", "1", "--model.num-layers", "1", "--run-dir", "first"])
    fences = holes_for_what_is_small()
    limit_memory(mib)
    for flags in runs:
        print(f"exit code {main(['train', *flags])}", flush=True)
    del fences


if __name__ == "__main__":
    words = itertools.groupby(sys.argv[2:], lambda word: word == "--")
    run_each(float(sys.argv[1]), [list(group) for is_separator, group in words if not is_separator])
