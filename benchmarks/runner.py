"""Runs cases in order of importance within a time limit; remembers finished ones, which a second start skips."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import free_memory, works
from benchmarks.timing import Stopwatch, attempt, failure

Row = dict[str, Any]
ATTEMPTS = 2  # a case that has ended the process so often is left alone
GRACE_SECONDS = 10.0  # beyond the time limit, for a case that takes longer than was thought


class TimeUp(BaseException):
    """The time limit has passed while a case ran. No guard of a single contender may swallow it."""


class DeviceLost(BaseException):
    """The GPU answers nothing any more: what was tried last, and what it raised."""

    def __init__(self, contender: str, reason: str) -> None:
        super().__init__(f"{contender}: {reason}")
        self.contender, self.reason = contender, reason


@dataclass
class Bench:
    """What every case gets. rounds: turns that each contender takes; seconds: of measuring a case, about.

    broken: contender -> reason, of what has made the GPU fail in an earlier start of the case that runs now.
    """

    device: torch.device
    rounds: int
    seconds: float
    say: Callable[[str], None] = lambda _: None
    broken: dict[str, str] = field(default_factory=dict)
    _stopwatch: Stopwatch | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU."""
        return self.device.type == "cuda"

    @property
    def stopwatch(self) -> Stopwatch:
        """Made on first use: it holds memory on a GPU."""
        self._stopwatch = self._stopwatch or Stopwatch(self.device)
        return self._stopwatch

    def attempt(self, name: str, work: Callable[[], Any]) -> tuple[str, str]:
        """(status, reason): ok, oom or error. Raises DeviceLost where nothing that comes after it could run."""
        if name in self.broken:
            return "error", f"not tried again, since the GPU failed: {self.broken[name]}"
        result = attempt(name, work)
        if result[0] != "ok" and not works(self.device):
            raise DeviceLost(name, result[1])
        return result


@dataclass(frozen=True)
class Case:
    """Something to measure. seconds: what it takes at most, by experience: it is not begun with less time left.

    spec: what the figures depend on beyond what the key says, such as which settings are compared.
    """

    key: str
    run: Callable[[Bench], list[Row]]
    seconds: float
    spec: str = ""

    @property
    def identity(self) -> str:
        """What finished cases are remembered by."""
        return f"{self.key} {hashlib.sha256(self.spec.encode()).hexdigest()[:8]}" if self.spec else self.key


@dataclass
class Outcome:
    """rows: of all cases, in the order of the cases. left_out: key -> why. lost: whether the GPU has failed."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    reused: int = 0
    lost: bool = False


class CaseLog:
    """JSON lines: `begun`, `rows` (finished) and `broke` (the GPU failed) records of cases by identity.

    Only those with the same fingerprint count.
    """

    def __init__(self, path: Path | None, fingerprint: dict[str, Any]) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.finished: dict[str, list[Row]] = {}
        self.begun: dict[str, int] = {}
        self.broken: dict[str, dict[str, str]] = {}
        self.foreign = 0
        for record in self._read():
            name = record["case"]
            if record.get("fingerprint") != fingerprint:
                self.foreign += "rows" in record
            elif "rows" in record:
                self.finished[name] = record["rows"]
            elif "broke" in record:  # begun for nothing, but for a known reason: it may be begun again without that
                self.begun[name] = self.begun.get(name, 0) - 1
                self.broken.setdefault(name, {})[record["broke"]] = record["reason"]
            else:
                self.begun[name] = self.begun.get(name, 0) + 1

    def _read(self) -> list[Row]:
        if self.path is None or not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:  # the line that an interrupted run was writing
                continue
        return [record for record in records if isinstance(record, dict) and "case" in record]

    def write(self, record: Row) -> None:
        """Append at once; begins a new line after one that was cut off."""
        if self.path is None:
            return
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size > 0
        with self.path.open("a") as file:
            file.write("\n" * cut + json.dumps({**record, "fingerprint": self.fingerprint}) + "\n")


def run_cases(cases: Sequence[Case], bench: Bench, log: CaseLog, minutes: float) -> Outcome:
    """Run what the log has not got. A case that raises is reported as a result: status oom or error."""
    started = time.monotonic()
    outcome = Outcome()
    results = {case.key: log.finished[case.identity] for case in cases if case.identity in log.finished}
    outcome.reused = len(results)
    waiting = [case for case in cases if case.key not in results]
    stopped = ""
    try:
        with _alarm(60 * minutes + GRACE_SECONDS):
            for case in waiting:
                left = 60 * minutes - (time.monotonic() - started)
                reason = _reason_to_leave_out(case, log, left)
                if reason:
                    outcome.left_out[case.key] = reason
                    continue
                bench.say(f"[{len(results) + 1}/{len(cases)}] {case.key}")
                stopped = _begin(case, bench, log, results, outcome)
                if stopped:
                    break
    except TimeUp:
        stopped = "the time was up while a case ran"
    except KeyboardInterrupt:
        stopped = "interrupted"
    if stopped:
        for case in waiting:
            if case.key not in results:
                outcome.left_out.setdefault(case.key, stopped)
    outcome.rows = [row for case in cases for row in results.get(case.key, [])]
    return outcome


def _reason_to_leave_out(case: Case, log: CaseLog, left: float) -> str:
    """left: seconds of the time limit."""
    if log.begun.get(case.identity, 0) >= ATTEMPTS:
        return f"ended the process or was stopped {ATTEMPTS} times"
    if left < case.seconds:
        return f"takes up to {case.seconds:.0f} s, and {max(left, 0):.0f} s were left"
    return ""


def _begin(case: Case, bench: Bench, log: CaseLog, results: dict[str, list[Row]], outcome: Outcome) -> str:
    """Run a case and remember it; why nothing can come after it, or nothing."""
    bench.broken = log.broken.get(case.identity, {})
    log.write({"case": case.identity, "begun": True})
    try:
        rows = _run(case, bench)
    except DeviceLost as lost:
        log.write({"case": case.identity, "broke": lost.contender, "reason": lost.reason})
        outcome.lost = True
        return f"the GPU failed in {lost}: a new start goes on without that"
    results[case.key] = rows
    log.write({"case": case.identity, "rows": rows})
    if not works(bench.device):
        outcome.lost = True
        return "the GPU failed before: start again"
    return ""


def _run(case: Case, bench: Bench) -> list[Row]:
    try:
        rows = case.run(bench)
    except Exception as error:
        status, reason = failure(error)
        rows = [{"contender": "", "status": status, "reason": reason}]
    free_memory()  # outside of the handler: the traceback would keep the case's tensors alive
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # else the next case's sizes would make its graphs dynamic, and slower
    return [{"case": case.key, **row} for row in rows]


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeUp inside after so many seconds, where the platform and the thread can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
