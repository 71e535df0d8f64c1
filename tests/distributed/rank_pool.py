"""Processes that are ranks of one run after another: importing torch takes seconds, a run here tenths of one.

A job names a function of a module in this folder; each rank calls it with its keywords, inside the environment that
torchrun would give it, and what it returns comes back. Ranks that a job leaves stuck are killed and made anew.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import traceback
from multiprocessing.connection import wait
from pathlib import Path

HERE = Path(__file__).parent
JOB_SECONDS = 240


class RankPool:
    """Up to `size` ranks; use as a context manager."""

    def __init__(self, size=4):
        self.size = size
        self._context = multiprocessing.get_context("forkserver")
        libraries = ["torch", "torch.distributed.fsdp", "megaselect.training.run", "megaselect.kernels.preloaded"]
        self._context.set_forkserver_preload(libraries)
        self._members = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def run(self, ranks, module, function, environment=None, **keywords):
        """What function(**keywords) returned on each of `ranks` ranks. Raises RuntimeError with what they raised."""
        while len(self._members) < ranks:
            self._members.append(self._start())
        port = _free_port()
        for rank, (_, connection) in enumerate(self._members[:ranks]):
            variables = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                **(environment or {}),
            }
            connection.send((variables, module, function, keywords))
        return self._results(ranks)

    def _results(self, ranks):
        results, waiting = {}, {connection: rank for rank, (_, connection) in enumerate(self._members[:ranks])}
        while waiting:
            ready = wait(list(waiting), JOB_SECONDS)
            if not ready:
                self._end()
                raise RuntimeError(f"ranks {sorted(waiting.values())} did not end in {JOB_SECONDS} s")
            for connection in ready:
                results[waiting.pop(connection)] = connection.recv()
        problems = [f"rank {rank}: {problem}" for rank, (problem, _) in sorted(results.items()) if problem]
        if problems:
            self._end()
            raise RuntimeError("\n".join(problems))
        return [results[rank][1] for rank in range(ranks)]

    def _start(self):
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def _end(self):
        for process, connection in self._members:
            connection.close()
            process.kill()
            process.join()
        self._members.clear()


def serve(connection):
    """A rank's life: jobs until the pool is gone."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(HERE))
    while True:
        try:
            variables, module, function, keywords = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        os.environ |= {name: str(value) for name, value in variables.items()}
        try:
            connection.send((None, getattr(importlib.import_module(module), function)(**keywords)))
        except BaseException:
            connection.send((traceback.format_exc(), None))


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
