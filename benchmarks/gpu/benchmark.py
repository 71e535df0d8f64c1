"""Bits and the headline cases: benchmarks/run.py in a process of its own, begun again where the GPU or it fails."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.child import Child
from benchmarks.gpu.parts import LEAST_SECONDS, Clock, Row

if TYPE_CHECKING:
    from benchmarks.runner import Case

RUNNER = ("benchmarks/run.py", "headline")
SETTINGS_REFUSED, DEVICE_LOST = 2, 3  # exit statuses of it
SLACK_SECONDS = 20.0  # of its own limit within the child's: it ends itself 10 s late at most
SILENCE_SECONDS = 100.0


@dataclass(frozen=True)
class Benchmark:
    """out: its report, beside which finished cases are remembered. options: further ones. runner: what is started."""

    out: Path
    log: Path
    environment: Mapping[str, str]
    options: Sequence[str] = ()
    runner: Sequence[str] = RUNNER
    silence: float = SILENCE_SECONDS

    @property
    def cases_path(self) -> Path:
        """As session.log_path has it."""
        return self.out.with_name(f"{self.out.stem}.cases.jsonl")

    def run(self, name: str, cases: Sequence[Case], clock: Clock) -> str:
        """These cases, in their own order; how often it was started. Raises RuntimeError where it cannot run at all."""
        starts, given_up = 0, set()
        while clock.left() > LEAST_SECONDS:
            waiting = [case for case in cases if case.identity not in given_up | self._finished()]
            if not waiting:
                break
            starts += 1
            ended = Child(name, self._command(waiting, clock), self.log, self.environment).wait(
                clock.left(), self.silence
            )
            if ended.code == SETTINGS_REFUSED and not ended.why:
                raise RuntimeError(f"it cannot run: see {self.log.name}")
            if ended.code in (0, 1):
                break
            if ended.code != DEVICE_LOST:  # of that it remembers itself what not to try again
                given_up |= self._begun() - self._finished()
                if not given_up:
                    raise RuntimeError(f"{ended.in_words} before the first case: see {self.log.name}")
        return f"started {starts} times" if starts > 1 else ""

    def rows(self, cases: Sequence[Case]) -> list[Row]:
        """Of what is finished by now."""
        found = {record["case"]: record["rows"] for record in self._records() if "rows" in record}
        return [row for case in cases for row in found.get(case.identity, [])]

    def _command(self, cases: Sequence[Case], clock: Clock) -> list[str]:
        minutes = max(clock.left() - SLACK_SECONDS, LEAST_SECONDS) / 60
        words = [sys.executable, *self.runner, "--out", str(self.out), "--minutes", f"{minutes:.3f}", *self.options]
        return [*words, "--case", *(case.key for case in cases)]

    def _finished(self) -> set[str]:
        return {record["case"] for record in self._records() if "rows" in record}

    def _begun(self) -> set[str]:
        return {record["case"] for record in self._records() if "begun" in record}

    def _records(self) -> list[Row]:
        lines = self.cases_path.read_text().splitlines() if self.cases_path.exists() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:  # cut off by a process that was killed
                continue
        return records
