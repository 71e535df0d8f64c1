"""The processes that torchrun has started become ranks: one process group, and one line where any of them fails.

torchrun tells each process RANK, WORLD_SIZE and where to meet, and starts all of them again, up to --max-restarts
times, where one has ended. The store where they meet outlives them: a rank must not meet what its predecessors left
there (pytorch #135712), so each start has names of its own, and so has each training of one start. What is to be
remembered from one start to the next has names without the start's.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from megaselect.distributed import meshes
from megaselect.distributed.board import Board
from megaselect.distributed.failures import STOPPED, Failures
from megaselect.distributed.launcher_death import end_with_launcher
from megaselect.distributed.ranks import ProcessGroupRanks, Ranks
from megaselect.distributed.stop_at_start import Stopped, stop_at_start
from megaselect.distributed.watchdog import Watchdog
from megaselect.errors import ConfigError, RankError


def launched_ranks() -> int:
    """How many ranks torchrun has started; 1 for a process alone."""
    return int(os.environ.get("WORLD_SIZE") or 1)


@contextmanager
def joined_ranks(seconds: float) -> Iterator[Ranks]:
    """This process among those that torchrun started, or alone; inside there is a process group.

    seconds: after which ranks that wait for another one give up. What is raised inside ends the run on every rank: it
    is raised here on one of them, and on the others as ToldByAnotherRank. Raises RankError where another rank is gone,
    and SystemExit where SIGTERM comes while nothing else handles it.
    """
    if launched_ranks() == 1:
        yield Ranks()
        return
    if dist.is_initialized():
        raise ConfigError(
            "torch.distributed has a process group already: destroy it before training, which makes one of its own"
        )
    end_with_launcher()
    meeting = _meet(seconds)
    failures, watching = (
        Failures(store, meeting.rank, meeting.size, "torchrun" if _store_outlives_ranks() else "rank 0")
        for store in (meeting.store, meeting.watched)
    )
    with _ended_in_one_line(failures), Watchdog(watching, members := failures.arrive(seconds)):
        # Tensors on a GPU travel by NCCL, what ranks tell each other on CPUs by gloo.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        limit = timedelta(seconds=seconds)
        dist.init_process_group(backend, store=meeting.store, rank=meeting.rank, world_size=meeting.size, timeout=limit)
        yield ProcessGroupRanks(members, _open_board(seconds), meeting.lasting)
        with suppress(dist.DistError, RuntimeError):  # torchrun may have been killed
            failures.leave()


@contextmanager
def _ended_in_one_line(failures: Failures) -> Iterator[None]:
    """See joined_ranks; the process group is gone afterwards."""
    try:
        with stop_at_start() as stop:
            try:
                yield
            except Exception as error:
                stop.ignore()  # torchrun asks all to end when one has ended, and this rank may be the one to tell it
                _let_go_of(error)
                _close()  # ranks that wait for this one need not wait for their time-out
                replaced = failures.raised_for(error)
                if replaced is error:
                    raise
                raise replaced from error
            except KeyboardInterrupt:
                with suppress(dist.DistError, RuntimeError):
                    failures.keep_silent()
                raise
    except Stopped:
        reason = None
        with suppress(dist.DistError, RuntimeError):
            reason = failures.raised_for_stop()
        if reason:
            raise reason from None
        raise SystemExit(STOPPED) from None
    finally:
        _close()


def _let_go_of(error: BaseException | None) -> None:
    """Of what the frames hold through which an error has come: models, and connections with them, stay open else."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _close() -> None:
    meshes.let_go()
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()  # connections are closed when nothing refers to them any more


class _Meeting(NamedTuple):
    """store: of this training alone. watched: the same, over another connection, for another thread. lasting: what one
    start leaves for the next; None where that cannot be.
    """

    store: dist.Store
    watched: dist.Store
    rank: int
    size: int
    lasting: Board | None


def _meet(seconds: float) -> _Meeting:
    """The store that all ranks share."""
    try:
        store, rank, size = _connect(seconds)
        start = f"megaselect/start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        training = f"training-{store.add(f'{start}/trainings-of/{rank}', 1)}"
        own, watched = (dist.PrefixStore(f"{start}/{training}", each) for each in (store, _connect(seconds)[0]))
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise RankError(f"the ranks cannot meet ({said}): start them by torchrun") from error
    if not _store_outlives_ranks():
        _kept[:] = [store]
    lasting = Board(dist.PrefixStore(f"megaselect/{training}", store), seconds) if _store_outlives_ranks() else None
    return _Meeting(own, watched, rank, size, lasting)


_kept: list[dist.Store] = []  # by the first rank, for those that have yet to read in it when this training has ended


def _connect(seconds: float) -> tuple[dist.Store, int, int]:
    """A connection to the store, this rank, and how many there are."""
    return next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))


def _store_outlives_ranks() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _open_board(seconds: float) -> Board:
    """In a store that the first rank keeps: a save must end also where torchrun was killed, and the other store with
    it. Without the first rank none can end.
    """
    ranks, host, limit = ProcessGroupRanks(), os.environ["MASTER_ADDR"], timedelta(seconds=seconds)
    kept = dist.TCPStore(host, 0, None, True, limit, wait_for_workers=False) if ranks.is_first else None
    port = ranks.from_first(kept.port if kept else 0)
    board = Board(kept or dist.TCPStore(host, port, None, False, limit, wait_for_workers=False), seconds)
    ranks.from_first(None)  # the first may leave at once, and others have yet to connect
    return board
