"""Runs tasks in child processes, one at a time, and reads their answers. No torch."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from megaselect.comparison.measurement import OUT_OF_MEMORY, Answer, BatchJob, ModelJob, Task
from megaselect.comparison.search import search_after
from megaselect.estimation.driver import first_gpu

Ask = Callable[[Task], Answer]


class Children:
    """Runs tasks, each in a process of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="megaselect-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def ask(self, task: Task) -> Answer:
        """Run the task to its end. A process that dies is an answer too."""
        task_path, answer_path, log = (Path(self._folder.name, name) for name in ("task", "answer", "log"))
        task_path.write_text(json.dumps(asdict(task)))
        for path in (answer_path, log):
            path.unlink(missing_ok=True)
        code = _run(context_for(task), (str(task_path), str(answer_path), str(log)))
        try:
            return TypeAdapter(Answer).validate_json(answer_path.read_bytes())
        except (OSError, ValidationError):
            return Answer(failure=_last_words(code, log))


def context_for(task: Task) -> ForkServerContext | SpawnContext:
    """How its process begins: as a copy of a server that has loaded the libraries; from nothing where it may use a GPU.

    CUDA does not work in a copy of a process that has begun to use it, and a library may do so as it loads.
    """
    device = task.choices.device if isinstance(task, ModelJob) else task.config["training"]["device"]
    if device != "cpu" and first_gpu() is not None:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["megaselect.comparison.preloaded"])
    return context


def _run(context: ForkServerContext | SpawnContext, paths: tuple[str, str, str]) -> int:
    """The exit code, minus the signal's number where one ended the process."""
    process = context.Process(target=begin, args=(*paths, dict(os.environ)))
    process.start()
    try:
        process.join()
    finally:
        process.kill()  # nothing, where it has ended
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def begin(task_path: str, answer_path: str, log_path: str, environment: Mapping[str, str]) -> None:
    """The child's beginning. environment: the parent's now, which the server of an earlier task does not know."""
    with Path(log_path).open("wb") as log:
        os.dup2(log.fileno(), 1)  # what a library prints is no part of what the parent prints
        os.dup2(log.fileno(), 2)
    os.environ.update(environment)
    importlib.import_module("megaselect.comparison.worker").main(task_path, answer_path)  # by name: it loads torch


def largest_micro_batch(ask: Ask, config: dict[str, Any], start: int, limit_bytes: int | None) -> tuple[int, str]:
    """(largest size that trains, why a larger one does not). Each failure is followed by a fresh process."""
    outcomes: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory(prefix="megaselect-") as folder:
        log = Path(folder, "log")
        while search_after(start, outcomes).next_size() is not None:
            answer = ask(BatchJob(config, tuple(outcomes), limit_bytes, str(log)))
            tried = _read_log(log, answer.failure)
            if not tried:  # it never came to try anything
                return search_after(start, outcomes).largest, answer.failure or "no size was tried"
            outcomes += tried
    search = search_after(start, outcomes)
    return search.largest, search.beyond


def _read_log(log: Path, failure: str | None) -> list[tuple[int, str]]:
    """What became of each size that one process tried."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    fitting = {int(size) for size, word in lines if word == "fits"}
    begun = [int(size) for size, word in lines if word == "begins"]
    return [(size, "" if size in fitting else failure or OUT_OF_MEMORY) for size in begun]


def _last_words(code: int, log: Path) -> str:
    """Why a process left no answer. One that the system ends for memory gets SIGKILL."""
    if code == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY}: the system ended the process"
    if code < 0:
        return f"the process ended by {signal.Signals(-code).name}"
    said = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    last = said[-1] if said else "it said nothing"
    if "cannot allocate memory" in last:  # the C library's words, where a thread's own data meet the limit
        return f"{OUT_OF_MEMORY}: {last}"
    return f"the process ended with code {code}: {last}"
