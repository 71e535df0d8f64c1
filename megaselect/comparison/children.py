"""Starts child processes one at a time and reads their answers. No torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from megaselect.comparison.measurement import OUT_OF_MEMORY, Answer, BatchJob, Task, TrainJob
from megaselect.comparison.search import search_after

_PACKAGE_HOME = Path(__file__).resolve().parents[2]


def ask(task: Task) -> Answer:
    """Run the task in a process of its own, to its end. A process that dies is an answer too."""
    with tempfile.TemporaryDirectory(prefix="megaselect-") as folder:
        task_path, answer_path = Path(folder, "task.json"), Path(folder, "answer.json")
        task_path.write_text(json.dumps(asdict(task)))
        command = [sys.executable, "-m", "megaselect.comparison.worker", str(task_path), str(answer_path)]
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=_environment())
        try:
            return TypeAdapter(Answer).validate_json(answer_path.read_bytes())
        except (OSError, ValidationError):
            return Answer(failure=_last_words(child))


def train(job: TrainJob) -> Answer:
    """Measure a setting."""
    return ask(Task(train=job))


def largest_micro_batch(config: dict, start: int, limit_bytes: int | None) -> tuple[int, str]:
    """(largest size that trains, why a larger one does not). Each failure is followed by a fresh process."""
    outcomes: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory(prefix="megaselect-") as folder:
        log = Path(folder, "log")
        while search_after(start, outcomes).next_size() is not None:
            answer = ask(Task(batch=BatchJob(config, tuple(outcomes), limit_bytes, str(log))))
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


def _last_words(child: subprocess.CompletedProcess[str]) -> str:
    """Why a child left no answer. A process that the system ends for memory gets SIGKILL."""
    if child.returncode == -signal.SIGKILL:
        return f"{OUT_OF_MEMORY}: the system ended the process"
    if child.returncode < 0:
        return f"the process ended by {signal.Signals(-child.returncode).name}"
    lines = child.stderr.strip().splitlines() or ["it said nothing"]
    return f"the process ended with code {child.returncode}: {lines[-1]}"
