"""What a run has found by now, as Markdown and JSON. What is not there is `not measured`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.gpu.parts import Part, Row
from benchmarks.report import markdown_table
from benchmarks.session import wrong_rows
from benchmarks.tables import Table, tables, target_table

EQUAL, DIFFER, NOT_SHOWN = 0, 1, 3  # exit statuses
PASSED = "passed"


@dataclass
class Findings:
    """cases: (name, command) of those that are planned. tests: planned ids; outcomes: id -> record.

    rows: of finished cases. record: of benchmarks.device.environment, None where the device did not answer.
    """

    command: str
    dry: bool
    parts: Sequence[Part]
    record: Row | None = None
    cases: Sequence[tuple[str, str]] = ()
    rows: Sequence[Row] = ()
    tests: Sequence[str] = ()
    outcomes: dict[str, Row] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def bits(self) -> tuple[int, str]:
        """(exit status, verdict): whether all settings gave the bits of `none` in every case that is not compiled."""
        planned = [case for case, _ in self.cases if _is_eager_bits(case)]
        rows = [row for row in self.rows if row["case"].startswith("bits")]
        measured = {row["case"] for row in rows}
        target = targets.judge(rows, on_gpu=True)[0]
        wrong = [row for row, why in wrong_rows(rows) if row.get("different")]
        if wrong:
            return DIFFER, f"DIFFER: {len(wrong)} settings, in {', '.join(dict.fromkeys(row['case'] for row in wrong))}"
        shown = f"{len(measured.intersection(planned))} of {len(planned)} cases measured"
        if target["value"]:
            return NOT_SHOWN, f"not shown: {target['value']} settings failed; {shown}"
        if not planned or not measured.issuperset(planned):
            return NOT_SHOWN, f"not measured: {shown}" if not measured else f"not shown: equal so far, {shown}"
        return EQUAL, f"bitwise equal: {shown}"

    def counts(self) -> dict[str, int]:
        """Of tests, by outcome; `not run` are those without one. A test that was skipped has measured nothing."""
        found = Counter(record["outcome"] for record in self.outcomes.values())
        found["not run"] = sum(test not in self.outcomes for test in self.tests)
        return {name: number for name, number in found.items() if number}

    def failures(self) -> list[Row]:
        """Tests that failed, crashed or hung."""
        return [record for record in self.outcomes.values() if record["outcome"] not in (PASSED, "skipped")]

    def not_measured(self) -> list[Row]:
        """Planned cases without rows."""
        measured = {row["case"] for row in self.rows}
        return [{"case": case, "command": command} for case, command in self.cases if case not in measured]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        status, verdict = self.bits()
        return {
            "command": self.command,
            "dry": self.dry,
            "status": status,
            "bits": verdict,
            "notes": list(self.notes),
            "parts": [part.row() for part in self.parts],
            "environment": self.record,
            "targets": targets.judge(list(self.rows), on_gpu=True),
            "tests": {"counts": self.counts(), "failures": self.failures(), "skipped": self._skips()},
            "rows": list(self.rows),
            "not_measured": self.not_measured(),
            "tests_not_run": [test for test in self.tests if test not in self.outcomes],
        }

    def markdown(self) -> str:
        """The verdicts first."""
        title = "GPU run, rehearsed without a GPU" if self.dry else "GPU run"
        device, date = (self.record[name] for name in ("device", "date")) if self.record else ("no device", "")
        counts = ", ".join(f"{number} {name}" for name, number in self.counts().items()) or "none collected"
        blocks = [
            f"# {title}: {device}, {date[:10]}",
            f"    {self.command}",
            *([_environment(self.record)] if self.record else []),
            f"- bits: {self.bits()[1]}\n- tests: {counts}",
            *([] if not self.notes else ["\n".join(f"- {note}" for note in self.notes)]),
            markdown_table(_parts_table(self.parts)),
            markdown_table(target_table(targets.judge(list(self.rows), on_gpu=True))),
            *(f"WRONG: {row['case']}, {row['contender']}: {why}" for row, why in wrong_rows(list(self.rows))),
            *(markdown_table(table) for table in tables(self.rows)),
            *self._tests(),
        ]
        if self.not_measured():
            lines = [f"- {row['case']}: not measured: `{row['command']}`" for row in self.not_measured()]
            blocks += ["## not measured", "\n".join(lines)]
        return "\n\n".join(blocks) + "\n"

    def write(self, folder: Path) -> None:
        """report.md and report.json, each as a whole or not at all."""
        for name, text in (("report.md", self.markdown()), ("report.json", json.dumps(self.document(), indent=1))):
            partial = folder / f".{name}"
            partial.write_text(text)
            os.replace(partial, folder / name)

    def _tests(self) -> list[str]:
        groups: dict[str, Counter[str]] = {}
        for test in self.tests:
            outcome = self.outcomes.get(test, {"outcome": "not run"})["outcome"]
            groups.setdefault(test.partition("[")[0], Counter())[_shown(outcome)] += 1
        lines = [
            [group.removeprefix("tests/"), ", ".join(f"{number} {name}" for name, number in found.items())]
            for group, found in groups.items()
        ]
        blocks = [markdown_table(Table("tests", ["test", "outcome"], lines))] if lines else []
        if self.failures():
            told = [f"- {row['test']}: {row['outcome']}: {row['why']}" for row in self.failures()]
            blocks += ["## tests that failed", "\n".join(told)]
        return blocks

    def _skips(self) -> dict[str, int]:
        """Reason -> number of tests."""
        return dict(Counter(row["why"] for row in self.outcomes.values() if row["outcome"] == "skipped"))


def _shown(outcome: str) -> str:
    """A skipped test has measured nothing."""
    return "not measured (skipped)" if outcome == "skipped" else outcome


def _is_eager_bits(case: str) -> bool:
    return case.startswith("bits") and not case.endswith("compiled")


def _environment(record: Row) -> str:
    gpu = ", ".join(f"{name} {value}" for name, value in (record["gpu"] or {}).items())
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
    return (
        f"{record['device']}; {gpu or 'power limit, clocks: not measured'}; {record['cpu']}, {os.cpu_count()} cores; "
        f"{versions}. {record['date']}, commit {record['commit'] or 'unknown'}, sources {record['sources']}."
    )


def _parts_table(parts: Sequence[Part]) -> Table:
    lines = [
        [part.name, part.what, part.state, "-" if part.seconds is None else f"{part.seconds:.0f}", part.note or "-"]
        for part in parts
    ]
    return Table("parts, in this order", ["part", "what", "state", "s", "note"], lines)
