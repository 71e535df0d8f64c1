"""Compiled CPU kernels on as many threads as torch uses.

Threads of Python's: what Numba compiles runs without the interpreter lock, and Numba's own threads do not survive a
fork, nor calls from two threads at once.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

FEWEST_ELEMENTS = 1 << 15  # for a thread: less is done before it has begun


def in_parts(planes: int, elements: int, run: Callable[[int, int], None]) -> None:
    """Call run(start, stop) for ranges that make up the planes; elements: of all of them. Raises what run raises."""
    threads = torch.get_num_threads()
    parts = max(min(threads, planes, elements // FEWEST_ELEMENTS), 1)
    bounds = [planes * part // parts for part in range(parts + 1)]
    ranges = list(itertools.pairwise(bounds))
    others = [_pool(os.getpid(), threads).submit(run, *each) for each in ranges[1:]]
    try:
        run(*ranges[0])
    finally:  # they write where the caller may read or free
        for other in others:
            other.exception()
    for other in others:
        other.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """All threads but the caller's. Of a process: a fork inherits the object and none of its threads."""
    return ThreadPoolExecutor(threads - 1, "megaselect-kernel")
