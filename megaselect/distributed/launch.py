"""The processes that torchrun has started become ranks: one process group, and one line where any of them fails.

torchrun tells each process RANK, WORLD_SIZE and where to meet, and starts all of them again, up to --max-restarts
times, where one has ended. A restarted rank must not meet what its predecessors left in the store (pytorch issue
135712), so each start has names of its own there.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from megaselect.distributed.board import Board
from megaselect.distributed.failures import Failures
from megaselect.distributed.ranks import ProcessGroupRanks, Ranks
from megaselect.errors import ConfigError, RankError

_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def launched_ranks() -> int:
    """How many ranks torchrun has started; 1 for a process alone."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined_ranks(seconds: float) -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone; inside there is a process group.

    seconds: after which ranks that wait for another one give up. What is raised inside ends the run on every rank: it
    is raised here on one of them, and on the others as ToldByAnotherRank. Raises RankError where another rank is gone.
    """
    if launched_ranks() == 1:
        yield Ranks()
        return
    if dist.is_initialized():
        raise ConfigError(
            "torch.distributed has a process group already: destroy it before training, which makes one of its own"
        )
    _end_with_launcher()
    timeout = timedelta(seconds=seconds)
    store, rank, size = _meet(timeout)
    failures = Failures(store, rank, size)
    try:
        try:
            failures.arrive()
            # Tensors on a GPU travel by NCCL, what ranks tell each other on CPUs by gloo.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
            yield ProcessGroupRanks(Board(store, seconds))
        except Exception as error:
            raise failures.raised_for(error) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store that all ranks of this start share."""
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise RankError(f"the ranks cannot meet ({said}): start them by torchrun") from error
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"megaselect-{start}", store), rank, size


def _end_with_launcher() -> None:
    """Have Linux end this process as SIGTERM does where torchrun is killed: it saves, and no rank is left behind."""
    if "TORCHELASTIC_RUN_ID" in os.environ and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
