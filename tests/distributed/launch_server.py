"""Plays torchrun: ranks that are copies of a process that has imported the trainer, so that a start takes no seconds.

Reads a JSON line for each run and writes one when all its ranks have ended: the exit codes of each start. As torchrun
does, it keeps the ranks' store in a process of its own that outlives them, ends the other ranks by SIGTERM when one has
ended, by SIGKILL `patience` seconds later, and starts all of them again up to `restarts` times.

kills: for each start a rank and what it waits for before it gets SIGKILL, {"rank": r, "seconds": s} or {"rank": r,
"collective": n} or {"rank": r, "save": n}, in which it then is: the others wait for it; or {"signals": names,
"seconds": s}, which all ranks get, one after the other, as torchrun passes on its own. Seconds may be {"file": name,
"bytes": n}: when it is there with so many.
troubles: rank -> what happens there instead of, say, its 10th collective, {"collective": 10, "what": a name of
TROUBLES}, or from the beginning, {"what": "full disk"}.
places: rank -> the directory that it starts in, where that is not the others'.
"""

import itertools
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # torch.optim imports it on first use
import torch.distributed as dist
import torch.distributed.fsdp

import megaselect.kernels.preloaded
from megaselect.cli.main import main
from megaselect.training import checkpoint_shared
from megaselect.training.run import train

IMPORTED = train, torch.distributed.fsdp, megaselect.kernels.preloaded  # `main` would import it in every copy


def serve():
    torch.set_num_threads(1)
    for line in sys.stdin:
        reading, writing = os.pipe()
        agent = os.fork()
        if not agent:
            os.write(writing, json.dumps(Agent(json.loads(line)).run()).encode())
            os._exit(0)
        os.close(writing)
        os.waitpid(agent, 0)
        with os.fdopen(reading) as told:
            print(told.read(), flush=True)


class Agent:
    """torchrun, of one node."""

    def __init__(self, job):
        self.job = job
        self.port, self.store = keep_store()

    def run(self):
        """For each start: {"codes": each rank's exit code, "seconds": what it took from the first end to the last}."""
        starts = []
        kills = iter(self.job["kills"])
        while len(starts) <= self.job["restarts"]:
            starts.append(self._start(len(starts), next(kills, None)))
            if not any(starts[-1]["codes"]):
                break
        os.kill(self.store, signal.SIGKILL)
        return starts

    def _start(self, number, kill):
        ranks = [self._fork(rank, number, kill) for rank in range(self.job["ranks"])]
        handles = {rank: os.pidfd_open(pid) for rank, pid in enumerate(ranks)}
        if kill and "seconds" in kill:
            self._wait(kill["seconds"], list(handles.values()))
            for name in kill.get("signals", ["SIGKILL"]):
                for pid in ranks if "signals" in kill else [ranks[kill["rank"]]]:
                    os.kill(pid, signal.Signals[name])  # a zombie keeps its number
        select.select(list(handles.values()), [], [])
        ended = time.monotonic()
        codes = {}
        time.sleep(0.1)  # as long as torchrun takes to look
        while len(codes) < len(ranks):
            self._reap(ranks, codes)
            if any(codes.values()):
                break
            time.sleep(0.05)
        self._close(ranks, codes, ended)
        for handle in handles.values():
            os.close(handle)
        return {"codes": [codes[rank] for rank in range(len(ranks))], "seconds": time.monotonic() - ended}

    def _wait(self, moment, handles):
        """So many seconds, or until a file has so many bytes; no longer than there are ranks."""
        if isinstance(moment, dict):
            file = Path(self.job["directory"], moment["file"])
            while not _has_bytes(file, moment["bytes"]) and not select.select(handles, [], [], 0.005)[0]:
                pass
        else:
            select.select(handles, [], [], moment)

    def _close(self, ranks, codes, ended):
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for rank, pid in enumerate(ranks):
                if rank not in codes:
                    os.kill(pid, signum)
            while len(codes) < len(ranks) and (
                signum == signal.SIGKILL or time.monotonic() < ended + self.job["patience"]
            ):
                self._reap(ranks, codes)
                time.sleep(0.02)

    @staticmethod
    def _reap(ranks, codes):
        for rank, pid in enumerate(ranks):
            if rank not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)

    def _fork(self, rank, number, kill):
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.environ.update(self._environment(rank, number))
            redirect(0, os.devnull, os.O_RDONLY)
            redirect(1, self.job["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            redirect(2, self.job["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.chdir(self.job["places"].get(str(rank), self.job["directory"]))
            if kill and kill.get("rank") == rank:
                meet_kill(kill)
            meet_trouble(self.job["troubles"].get(str(rank)))
            code = main([*self.job["arguments"], *self.job["own_arguments"].get(str(rank), [])])
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _environment(self, rank, number):
        size = str(self.job["ranks"])
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_RESTART_COUNT": str(number),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RUN_ID": "none",
            **self.job["environment"],
        }


def _has_bytes(file, number):
    try:
        return file.stat().st_size >= number
    except FileNotFoundError:
        return False


def keep_store():
    """The port of a store, and the process that keeps it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        store = dist.TCPStore("127.0.0.1", port, None, True, timedelta(seconds=60), wait_for_workers=False)
        os.write(writing, str(store.port).encode())
        os.close(writing)
        while True:
            signal.pause()
    os.close(writing)
    with os.fdopen(reading) as told:
        return int(told.read()), pid


def redirect(number, path, flags):
    opened = os.open(path, flags, 0o666)
    os.dup2(opened, number)
    os.close(opened)


def in_collective(number, trouble):
    """Call trouble() in place of a collective: the others are in it."""
    done = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal done
            done += 1
            if done == number + 1:
                trouble()
            return function(*arguments, **keywords)

        return call

    for name in ("all_gather_into_tensor", "all_gather_single", "all_to_all_single"):
        if hasattr(dist, name):
            setattr(dist, name, counted(getattr(dist, name)))


def in_save(number, trouble):
    """Call trouble() in place of writing this rank's part of that save, counted from 1."""
    saves, write_files = itertools.count(1), checkpoint_shared.write_files

    def write(*arguments):
        if next(saves) == number:
            trouble()
        return write_files(*arguments)

    checkpoint_shared.write_files = write


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    os.kill(os.getpid(), signal.SIGSTOP)


def divide_by_zero():
    return 1 / 0


def run_out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


TROUBLES = {
    "killed": be_killed,
    "hangs": hang,
    "bug": divide_by_zero,
    "out of memory": run_out_of_memory,
    "ctrl-c": press_ctrl_c,
}


def meet_kill(kill):
    """Where the rank itself knows the moment."""
    if "collective" in kill:
        in_collective(kill["collective"], be_killed)
    elif "save" in kill:
        in_save(kill["save"], be_killed)


def meet_trouble(trouble):
    """See the head of this file."""
    if trouble and "collective" in trouble:
        in_collective(trouble["collective"], TROUBLES[trouble["what"]])
    elif trouble:
        fill_disk()


def fill_disk():
    """No file can grow beyond what metrics.jsonl and the like need."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


if __name__ == "__main__":
    serve()
