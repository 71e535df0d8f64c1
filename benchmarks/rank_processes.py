"""Processes that are ranks of one process group, without torchrun: one function runs on each of them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import Any

from megaselect.errors import RankError, ToldByAnotherRank

LAST_WORDS_SECONDS = 20.0  # of ranks whose fellow has failed: they fail too, and one of all says why


def run_on_ranks(ranks: int, function: Callable[..., Any], limit: float, **keywords: Any) -> list[Any]:
    """What function(**keywords) returned on each rank, within the environment that torchrun would give it.

    function: importable by its name; it joins the process group itself. Raises RankError where a rank raises or ends,
    or where they take longer than `limit` seconds. However it ends, no rank is left.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not work in a copy of a process that has used it
    members = {}
    try:
        port = _free_port()
        for rank in range(ranks):
            ours, theirs = context.Pipe(duplex=False)
            arguments = (theirs, _environment(rank, ranks, port), function, keywords)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            members[ours] = process
        return _answers(list(members), time.monotonic() + limit)
    finally:
        for connection, process in members.items():
            connection.close()
            process.kill()
            process.join()


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in variables.items()}


def _answers(connections: list[Connection], deadline: float) -> list[Any]:
    answers: dict[int, Any] = {}
    problems: dict[int, str] = {}
    ranks = {connection: rank for rank, connection in enumerate(connections)}
    waiting = list(connections)
    while waiting:
        ready = wait(waiting, max(deadline - time.monotonic(), 0))
        if not ready:
            break
        for connection in ready:
            waiting.remove(connection)
            rank = ranks[connection]
            try:
                problem, answers[rank] = connection.recv()
            except EOFError:
                problem = "ended without a word"
            if problem:
                problems[rank] = problem
                deadline = min(deadline, time.monotonic() + LAST_WORDS_SECONDS)
    if problems:
        # Those that only say that another one failed come last.
        rank = min(problems, key=lambda rank: problems[rank].startswith(ToldByAnotherRank.__name__))
        raise RankError(f"rank {rank}: {problems[rank]}")
    if waiting:
        raise RankError(f"no answer in time from rank {', '.join(str(ranks[connection]) for connection in waiting)}")
    return [answers[rank] for rank in range(len(connections))]


def _serve(
    connection: Connection, environment: Mapping[str, str], function: Callable[..., Any], keywords: Mapping[str, Any]
) -> None:
    """A rank's life."""
    os.environ |= environment
    try:
        connection.send(("", function(**keywords)))
    except Exception as error:
        connection.send((f"{type(error).__name__}: {error}", None))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
