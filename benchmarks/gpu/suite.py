"""`pytest -m cuda` in several processes that share the GPU, the most telling tests first.

Each process takes a list of tests; where it dies, hangs or loses the GPU, another one goes on behind the test that it
was in. What became of a test stands in a file of JSON lines as soon as it has ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu.child import ROOT, Child, Ended
from benchmarks.gpu.parts import LEAST_SECONDS, Clock, Row

# In this order: the bits of the modes, the kernels op by op, bytes, training; then what compiles for long.
ORDER = (
    "tests/recomputation/test_on_cuda.py::test_every_mode",
    "tests/kernels/test_kernels_cuda.py",
    "tests/kernels/test_attention_cuda.py",
    "tests/kernels/test_layer_norm_cuda.py",
    "tests/recomputation/test_on_cuda.py::test_bytes",
    "tests/recomputation/test_ledger_fake.py",
    "tests/recomputation/test_peak.py",
    "tests/recomputation/test_on_cuda.py::test_train",
    "tests/training",
    "tests/data",
    "tests/estimation",
    "tests/recomputation/test_on_cuda.py::test_compiled",
)
MARK = "mark.cuda"
SILENCE_SECONDS = 60.0
TOGETHER = 12  # tests of one function that stay in one process, for the kernels that they share
MAX_LANES = 8
IDLE_STARTS = 2  # processes of a lane that have not even begun: another one would not either
BROKEN = ("crashed", "hung")


def lane_count() -> int:
    """Two cores a process, since each compiles kernels; two processes at least, where one may hang."""
    return max(2, min(MAX_LANES, (os.cpu_count() or 1) // 2))


def files() -> list[str]:
    """Those that hold a test for a GPU; pytest imports nothing else then."""
    found = (ROOT / "tests").rglob("test_*.py")
    return sorted(str(path.relative_to(ROOT)) for path in found if MARK in path.read_text(encoding="utf-8"))


def priority(test: str) -> int:
    """A place in ORDER; what is not there comes last."""
    return next((number for number, prefix in enumerate(ORDER) if test.startswith(prefix)), len(ORDER))


def lanes(tests: Sequence[str], count: int) -> list[list[str]]:
    """Each lane in order of priority. Neighbours of one function stay together, at most TOGETHER of them."""
    chunks: list[list[str]] = []
    for test in sorted(tests, key=priority):  # stable: pytest's order within a priority
        last = chunks[-1] if chunks else []
        if last and len(last) < TOGETHER and last[-1].partition("[")[0] == test.partition("[")[0]:
            last.append(test)
        else:
            chunks.append([test])
    made: list[list[str]] = [[] for _ in range(count)]
    for chunk in chunks:
        min(made, key=len).extend(chunk)
    return [lane for lane in made if lane]


@dataclass
class Results:
    """Of all lanes, read from the file that they append to. outcomes: test -> its record."""

    path: Path
    outcomes: dict[str, Row] = field(default_factory=dict)
    begun: dict[str, str] = field(default_factory=dict)  # lane -> the test that it began last

    def read(self) -> Results:
        """All that is there by now."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # cut off by a process that was killed
                continue
            if "begun" in record:
                self.begun[record["lane"]] = record["test"]
            elif "outcome" in record:
                self.outcomes[record["test"]] = record
        return self

    def note(self, record: Row) -> None:
        """What a process cannot say of itself any more."""
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


@dataclass(frozen=True)
class Suite:
    """folder: for lists of tests; results, log: files to append to. root: of the tests; options: further ones."""

    folder: Path
    results: Path
    log: Path
    environment: Mapping[str, str]
    options: Sequence[str] = ("-m", "cuda")
    silence: float = SILENCE_SECONDS
    root: Path = ROOT

    def collect(self, paths: Sequence[str]) -> Child:
        """Starts what writes the ids that `collected` reads."""
        return self._pytest("collect", [*paths, "--collect-only", "-qq", "--gpu-list", str(self._list)])

    def collected(self) -> list[str]:
        """Raises RuntimeError where there is no list: pytest's own words are in the log."""
        if not self._list.exists():
            raise RuntimeError(f"pytest has collected nothing: see {self.log.name}")
        return json.loads(self._list.read_text())

    def run(self, tests: Sequence[str], clock: Clock, count: int) -> str:
        """All of them, until the time is up; how many processes it took, in words."""
        shares = lanes(tests, count)
        with ThreadPoolExecutor(len(shares) or 1) as pool:
            starts = list(pool.map(lambda item: self._run_lane(str(item[0]), item[1], clock), enumerate(shares)))
        return f"{len(shares)} processes at a time, {sum(starts)} in all"

    def _run_lane(self, lane: str, tests: Sequence[str], clock: Clock) -> int:
        """How many processes there were."""
        starts, idle, waiting = 0, 0, list(tests)
        while waiting and idle < IDLE_STARTS and clock.left() > LEAST_SECONDS:
            starts += 1
            take = self.folder / f"lane-{lane}.json"
            take.write_text(json.dumps(waiting))
            paths = sorted({str(self.root / test.partition("::")[0]) for test in waiting})
            options = [
                "-v",
                "--tb=short",
                "--continue-on-collection-errors",
                "--gpu-take",
                str(take),
                "--gpu-results",
                str(self.results),
            ]
            ended = self._pytest(f"tests {lane}", [*paths, *options, "--gpu-lane", lane]).wait(
                clock.left(), self.silence
            )
            results = self._judge(lane, ended, clock)
            left = [test for test in waiting if test not in results.outcomes]
            idle = idle + 1 if len(left) == len(waiting) else 0
            waiting = left
        return starts

    def _judge(self, lane: str, ended: Ended, clock: Clock) -> Results:
        """Notes the test that took the process with it, unless that was the end of the time."""
        results = Results(self.results).read()
        last = results.begun.get(lane)
        cut_off = clock.left() <= 0
        if last and last not in results.outcomes and not cut_off:
            outcome = BROKEN[bool(ended.why)]
            results.note({"lane": lane, "test": last, "outcome": outcome, "why": ended.in_words, "seconds": None})
            results.read()
        return results

    def _pytest(self, name: str, arguments: Sequence[str]) -> Child:
        command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.plugin", "-p", "no:cacheprovider"]
        environment = {**self.environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever else a machine has
        return Child(name, [*command, *self.options, *arguments], self.log, environment)

    @property
    def _list(self) -> Path:
        return self.folder / "tests.json"
