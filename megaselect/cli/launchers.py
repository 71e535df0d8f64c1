"""One process among several that a launcher has started: torchrun, mpirun or srun. Only training has work for several,
and only torchrun's processes can meet (megaselect/distributed/launch.py).

What each launcher tells its processes, by variables:

- torchrun, and others that follow it: WORLD_SIZE and RANK.
- mpirun: OMPI_COMM_WORLD_SIZE and _RANK (Open MPI); PMI_SIZE and PMI_RANK (MPICH, Intel MPI).
- srun: SLURM_STEP_NUM_TASKS and SLURM_PROCID. Not SLURM_NTASKS, which a batch script and an allocation's shell have
  too, each of them one process: there it is how many srun would start.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from megaselect.errors import MegaselectError, ToldByAnotherRank

# A launcher that sees one process end may end the others at once. Rank 0 waits for the others to be up, and they for
# its line to be written.
FIRST_RANK_SECONDS, OTHER_RANKS_SECONDS = 1.0, 5.0
# Commands that show something and leave nothing behind: a process for each rank does no harm.
_ONLY_READ = {("estimate",), ("runs",), ("data", "inspect"), ("checkpoint", "verify")}
_TORCHRUN = "WORLD_SIZE"


def keep_connections_silent() -> None:
    """Before torch is imported: of a rank that is gone torch would write a warning with its own stack on every other
    one, beside the line that tells it.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class _Launcher(NamedTuple):
    """The variables that hold how many processes there are, and which of them this is."""

    size: str
    rank: str
    remedy: str


# One may have started another: what is innermost, and so started this process, comes first.
_LAUNCHERS = (
    _Launcher(_TORCHRUN, "RANK", "torchrun --nproc-per-node 1, or without torchrun"),
    _Launcher("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "mpirun -n 1"),
    _Launcher("PMI_SIZE", "PMI_RANK", "mpirun -n 1"),
    _Launcher("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "srun --ntasks 1"),
)


class Launch(NamedTuple):
    """This process, `rank` of `processes`. told_by: the variable that says so. remedy: how one process is started."""

    processes: int
    rank: int
    told_by: str
    remedy: str

    def refusal(self) -> str:
        """What is wrong, and how one process is started."""
        return (
            f"{self.processes} processes were started ({self.told_by}), and each would do the whole work by itself: "
            f"start one, as with {self.remedy}; to train on several, torchrun --nproc-per-node N train.py"
        )


def find_launch(environment: Mapping[str, str], on_terminal: bool) -> Launch | None:
    """What started several processes like this one; None where it is alone.

    on_terminal: whether standard input is one. `srun --pty bash` gives a terminal to its first task alone, and what is
    typed there runs once, whatever its variables say.
    """
    for launcher in _LAUNCHERS:
        size, rank = environment.get(launcher.size, ""), environment.get(launcher.rank, "")
        if size.isdecimal() and rank.isdecimal():
            typed = on_terminal and launcher.size.startswith("SLURM_")
            return Launch(int(size), int(rank), launcher.size, launcher.remedy) if int(size) > 1 and not typed else None
    return None


def refused_launch(arguments: Sequence[str]) -> Launch | None:
    """What started several of this process, where each would do all the work of the command line `arguments`."""
    helps = {"-h", "--help", "--version"}.intersection(arguments)
    if helps or tuple(arguments[:1]) in _ONLY_READ or tuple(arguments[:2]) in _ONLY_READ:
        return None
    launch = this_launch()
    trains_on_ranks = launch is not None and launch.told_by == _TORCHRUN and arguments[0] == "train"
    return None if trains_on_ranks else launch


def this_launch() -> Launch | None:
    """What started several of this process; None where it is alone."""
    return find_launch(os.environ, sys.stdin is not None and sys.stdin.isatty())


@contextmanager
def first_rank_tells() -> Iterator[None]:
    """What every rank finds out by itself, such as a mistyped flag, is told by the first of them.

    Another one tells it where the launcher does not end it soon after: then the first has no such error, as where a
    file differs on another machine.
    """
    try:
        yield
    except MegaselectError as error:
        launch = this_launch()
        if launch and launch.rank:
            if let_others_end(launch):
                raise ToldByAnotherRank(str(error)) from error
            error.args = (f"rank {launch.rank}: {error}",)
        raise


def let_others_end(launch: Launch) -> bool:
    """Wait until each process has got as far as its exit code, or the launcher ends this one, which keeps its own.

    Returns whether the launcher did. Not where SIGTERM is ignored already, as by ranks that have met: they hear of each
    other's end by themselves.
    """

    def stop(*_: object) -> None:
        raise _AskedToEnd

    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        return False
    asked = True
    with suppress(_AskedToEnd):
        signal.signal(signal.SIGTERM, stop)
        time.sleep(_patience(launch))
        asked = False
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return asked


def _patience(launch: Launch) -> float:
    """Of the others no two of a machine end together, so that one of them tells what all have found."""
    if launch.rank == 0:
        return FIRST_RANK_SECONDS
    local_rank = os.environ.get("LOCAL_RANK", "")
    return OTHER_RANKS_SECONDS + 0.5 * (int(local_rank) if local_rank.isdecimal() else 0)


class _AskedToEnd(Exception):
    """SIGTERM has come."""
