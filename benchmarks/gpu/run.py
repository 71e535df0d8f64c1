"""The parts of a run on a GPU, and of its rehearsal: what each starts, and what the report reads of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.arguments import parse
from benchmarks.gpu.benchmark import Benchmark
from benchmarks.gpu.carried import MISSING, WHEELS
from benchmarks.gpu.child import Child
from benchmarks.gpu.origin import commit
from benchmarks.gpu.parts import Clock, Part, Row
from benchmarks.gpu.report import EQUAL, Findings
from benchmarks.gpu.suite import Results, Suite, files, lane_count
from benchmarks.runner import Case
from benchmarks.session import cases_of, command
from megaselect.comparison.provenance import output_of

CAPABILITY = 90  # Hopper
COMPILERS = 16  # processes at most
COMPILE_SECONDS, DRY_COMPILE_SECONDS = 25.0, 1500.0  # that bits wait for their kernels
RECORD_SECONDS = 60.0
LIMITS = {"setup": 60.0, "bits": 120.0, "tests": 150.0, "headline": 300.0}  # seconds; the last takes what is left
DRY_LIMIT = 1800.0
QUICK = ("--rounds", "1", "--seconds", "0.05")
FILES = ("report.md", "report.json", "headline.json", "headline.cases.jsonl", "tests.jsonl", "log.txt")


class Run:
    """folder: for what nobody needs afterwards. said: what has come of the carried packages."""

    def __init__(self, out: Path, folder: Path, dry: bool, words: str, said: str) -> None:
        self.out, self.folder, self.dry, self.words, self.said = out, folder, dry, words, said
        for name in FILES:
            (out / name).unlink(missing_ok=True)  # of an earlier run: nothing of it may stand in this one's report
        self.device = "cpu" if dry else "cuda"
        self.log = out / "log.txt"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        options = ["--device", self.device, "--commit", commit(WHEELS) or "unknown", *(QUICK if dry else ())]
        self.benchmark = Benchmark(out / "headline.json", self.log, environment, options)
        self.suite = Suite(folder, out / "tests.jsonl", self.log, environment)
        self.environment = environment
        self.planned = cases_of(parse(["headline"]), torch.device("cuda"))[0]
        self.cases: list[Case] = cases_of(parse(["headline"]), torch.device("cpu"))[0] if dry else self.planned
        self.tests: list[str] = []
        self.troubles: list[str] = [said] if MISSING in said else []
        self.background: list[Child] = []
        self.collection: Child | None = None
        self.parts = [
            self._part("setup", "packages, device, kernels of the bits compiled", self._setup),
            self._part("bits", "loss and gradients of every recompute setting", self._bits),
            self._part("tests", "pytest -m cuda, by priority", self._tests),
            self._part("headline", "the targets of the benchmarks", self._headline),
        ]

    def findings(self) -> Findings:
        """By now. A rehearsal's rows are a CPU's, and no figures."""
        arguments = parse(["headline"])
        cases = [(case.key, command(arguments, case)) for case in self.planned]
        rows = [] if self.dry else self.benchmark.rows(self.cases)
        outcomes = Results(self.suite.results).read().outcomes
        return Findings(
            self.words, self.dry, self.parts, self._record(), cases, rows, self.tests, outcomes, self.notes()
        )

    def write_report(self) -> None:
        """To the folder that was asked for."""
        self.findings().write(self.out)

    def notes(self) -> list[str]:
        """What went wrong, a rehearsal's verdict last."""
        notes = [f"TROUBLE: {trouble}" for trouble in self.troubles]
        if self.dry and all(part.state == "done" for part in self.parts):
            notes.append(f"rehearsal: {'FAILED' if self.rehearsal_faults() else 'passed'}")
            notes += self.rehearsal_faults()
        return notes

    def status(self) -> int:
        """The exit status."""
        return int(bool(self.rehearsal_faults())) if self.dry else self.findings().bits()[0]

    def rehearsal_faults(self) -> list[str]:
        """What a rehearsal has not been able to do."""
        faults = list(self.troubles)
        faults += [f"{part.name}: {part.state}: {part.note}" for part in self.parts if part.state != "done"]
        rows = self.benchmark.rows(self.cases)
        faults += [f"{row['case']}, {row['contender']}: {row['reason']}" for row in rows if row["status"] == "error"]
        ran = {row["case"] for row in rows}
        faults += [f"{case.key} did not run" for case in self.cases if case.key not in ran]
        bits = Findings(self.words, False, (), None, [(case.key, "") for case in self.cases], rows).bits()
        faults += [] if bits[0] == EQUAL else [f"bits on the CPU: {bits[1]}"]
        outcomes = Results(self.suite.results).read().outcomes
        faults += [f"{test} did not run" for test in self.tests if test not in outcomes]
        faults += [f"{row['test']}: {row['why']}" for row in outcomes.values() if row["outcome"] not in _HARMLESS]
        return faults

    def close(self) -> None:
        """End what is still running beside the parts."""
        for child in self.background:
            child.kill()
        self.background.clear()

    def _part(self, name: str, what: str, work: Callable[[Clock], str]) -> Part:
        return Part(name, what, DRY_LIMIT if self.dry else LIMITS[name], work)

    def _setup(self, clock: Clock) -> str:
        record = self._python("device", "benchmarks.gpu.device_record", self.device, str(self._record_path))
        self.background.append(record)
        compilers = self._compilers("bits", _compiler_count())
        self.collection = self.suite.collect(files())
        self.background.append(self.collection)
        if record.wait(min(RECORD_SECONDS, clock.left())).code:
            self.troubles.append(f"the device did not answer: see {self.log.name}")
        wait = Clock(min(clock.left(), DRY_COMPILE_SECONDS if self.dry else COMPILE_SECONDS))
        self._wait_for(compilers, wait)
        compilers = self._compilers("headline", _compiler_count(), "--nice", "10")
        if self.dry:
            self._wait_for(compilers, clock)
        return self.said

    def _compilers(self, group: str, count: int, *options: str) -> list[Child]:
        made = [
            self._python(
                f"compile {number}", "benchmarks.gpu.compile_ahead", group, "--capability", str(_capability()),
                "--share", str(number), str(count), *options,
            )
            for number in range(count)
        ]  # fmt: skip
        self.background += made
        return made

    def _wait_for(self, compilers: list[Child], clock: Clock) -> None:
        """What has not come to its end goes on beside the parts; a rehearsal takes it for a fault."""
        for child in compilers:
            ended = child.running_until(clock.left())
            if ended is None and self.dry:
                self.troubles.append(f"{child.name} is not ready in time")
            elif ended:
                self.troubles.append(f"{child.name}: exit status {ended}: see {self.log.name}")

    def _bits(self, clock: Clock) -> str:
        cases = [case for case in self.cases if case.key.startswith("bits") and not case.key.endswith("compiled")]
        return self.benchmark.run("bits", cases, clock)

    def _tests(self, clock: Clock) -> str:
        if self.collection is None:
            raise RuntimeError("nothing was set up")
        code = self.collection.wait(clock.left()).code
        if code:
            self.troubles.append(f"collecting tests: exit status {code}: see {self.log.name}")
        self.tests = self.suite.collected()
        return self.suite.run(self.tests, clock, lane_count())

    def _headline(self, clock: Clock) -> str:
        self.close()  # nothing may disturb the times
        return self.benchmark.run("headline", self.cases, clock)

    def _python(self, name: str, module: str, *arguments: str) -> Child:
        return Child(name, [sys.executable, "-m", module, *arguments], self.log, self.environment)

    @property
    def _record_path(self) -> Path:
        return self.folder / "device.json"

    def _record(self) -> Row | None:
        """Of the device, where it has answered; with this run's command in place of the child's."""
        try:
            record = json.loads(self._record_path.read_text())
        except (OSError, ValueError):
            return None
        return record | {"command": self.words, "commit": commit(WHEELS)}


_HARMLESS = ("passed", "skipped")


def _compiler_count() -> int:
    return max(2, min(COMPILERS, os.cpu_count() or 1))


def _capability() -> int:
    """90 for compute capability 9.0; Hopper's where no driver tells."""
    told = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0")
    return int(told.splitlines()[0].replace(".", "")) if told else CAPABILITY
