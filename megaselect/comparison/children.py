"""Starts child processes one at a time and reads their answers. No torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from megaselect.comparison.measurement import OUT_OF_MEMORY, Answer, BatchJob, Task
from megaselect.comparison.search import search_after

Ask = Callable[[Task], Answer]
_PACKAGE_HOME = Path(__file__).resolve().parents[2]


class Children:
    """Runs tasks, each in a process of its own. The first one starts the nursery, which ends with the `with` block."""

    def __init__(self) -> None:
        self._nursery: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="megaselect-")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._nursery is not None:
            if kind is not None:
                self._nursery.kill()
            self._nursery.communicate()  # closes its input, which it waits on
        self._folder.cleanup()

    def ask(self, task: Task) -> Answer:
        """Run the task to its end. A process that dies is an answer too."""
        task_path, answer_path, log = (Path(self._folder.name, name) for name in ("task", "answer", "log"))
        task_path.write_text(json.dumps(asdict(task)))
        answer_path.unlink(missing_ok=True)
        code = self._run([str(task_path), str(answer_path), str(log)])
        try:
            return TypeAdapter(Answer).validate_json(answer_path.read_bytes())
        except (OSError, ValidationError):
            return Answer(failure=_last_words(code, log))

    def _run(self, paths: list[str]) -> int:
        """The exit code of the process that does the task, or of the nursery where that has died."""
        if self._nursery is None:
            with Path(paths[-1]).open("wb") as log:
                self._nursery = subprocess.Popen(
                    [sys.executable, "-m", "megaselect.comparison.nursery"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=_environment(),
                )
        assert self._nursery.stdin is not None  # both are pipes
        assert self._nursery.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._nursery.stdin.write(json.dumps(paths) + "\n")
            self._nursery.stdin.flush()
        answer = self._nursery.stdout.readline()
        return int(answer) if answer else self._nursery.wait()


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


def _environment() -> dict[str, str]:
    """This process's, in which the child finds the same megaselect, from whichever directory it was started."""
    paths = [str(_PACKAGE_HOME), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _last_words(code: int, log: Path) -> str:
    """Why a process left no answer. One that the system ends for memory gets SIGKILL."""
    if code == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY}: the system ended the process"
    if code < 0:
        return f"the process ended by {signal.Signals(-code).name}"
    last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
    if "cannot allocate memory" in last:  # the C library's words, where a thread's own data meet the limit
        return f"{OUT_OF_MEMORY}: {last}"
    return f"the process ended with code {code}: {last}"
