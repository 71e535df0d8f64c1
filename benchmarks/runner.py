"""Runs cases in order of importance within a time limit; remembers finished ones, which a second start skips."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import free_memory, synchronise
from benchmarks.timing import Stopwatch, failure

Row = dict[str, Any]
ATTEMPTS = 2  # a case that has ended the process so often is left alone


@dataclass
class Bench:
    """What every case gets. rounds: turns that each contender takes; seconds: of measuring a case, about."""

    device: torch.device
    rounds: int
    seconds: float
    say: Callable[[str], None] = lambda _: None
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


@dataclass(frozen=True)
class Case:
    """Something to measure. seconds: what it takes at most, by experience: it is not begun with less time left."""

    key: str
    run: Callable[[Bench], list[Row]]
    seconds: float


@dataclass
class Outcome:
    """rows: of all cases, in the order of the cases. left_out: key -> why."""

    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    reused: int = 0


class CaseLog:
    """JSON lines: `begun` and `finished` records. Only those with the same fingerprint count."""

    def __init__(self, path: Path | None, fingerprint: dict[str, Any]) -> None:
        self.path, self.fingerprint = path, fingerprint
        self.finished: dict[str, Row] = {}
        self.begun: dict[str, int] = {}
        self.foreign = 0
        for record in self._read():
            if record.get("fingerprint") != fingerprint:
                self.foreign += "rows" in record
            elif "rows" in record:
                self.finished[record["case"]] = record
            else:
                self.begun[record["case"]] = self.begun.get(record["case"], 0) + 1

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
    results: dict[str, list[Row]] = {}
    for number, case in enumerate(cases, 1):
        if case.key in log.finished:
            results[case.key] = log.finished[case.key]["rows"]
            outcome.reused += 1
            continue
        if log.begun.get(case.key, 0) >= ATTEMPTS:
            outcome.left_out[case.key] = f"ended the process or was stopped {ATTEMPTS} times"
            continue
        left = 60 * minutes - (time.monotonic() - started)
        if left < case.seconds:
            outcome.left_out[case.key] = f"takes up to {case.seconds:.0f} s, and {max(left, 0):.0f} s were left"
            continue
        bench.say(f"[{number}/{len(cases)}] {case.key}")
        log.write({"case": case.key, "begun": True})
        try:
            results[case.key] = _run(case, bench)
        except KeyboardInterrupt:
            outcome.left_out |= dict.fromkeys(_keys_from(cases, number - 1), "interrupted")
            break
        log.write({"case": case.key, "rows": results[case.key]})
        if not _device_works(bench.device):
            outcome.left_out |= dict.fromkeys(_keys_from(cases, number), "the device failed before: start again")
            break
    outcome.rows = [row for case in cases for row in results.get(case.key, [])]
    return outcome


def _keys_from(cases: Sequence[Case], number: int) -> list[str]:
    return [case.key for case in cases[number:]]


def _device_works(device: torch.device) -> bool:
    """A GPU that has run into a bad address answers every later call of the process with an error."""
    try:
        synchronise(device)
    except RuntimeError:
        return False
    return True


def _run(case: Case, bench: Bench) -> list[Row]:
    try:
        rows = case.run(bench)
    except Exception as error:
        status, reason = failure(error)
        rows = [{"contender": "", "status": status, "reason": reason}]
    free_memory()  # outside of the handler: the traceback would keep the case's tensors alive
    return [{"case": case.key, **row} for row in rows]
