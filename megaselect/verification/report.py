"""What a verification found: subjects with named checks, as data and as plain text. No torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """Of one check. A report passes where no check failed, and none that belongs to it could not be made."""

    PASSED = "passed"
    WARNING = "warning"
    NOT_CHECKED = "not checked"
    FAILED = "failed"


TEXT_COLUMNS = 100
_SEVERITY = list(Outcome)


@dataclass(frozen=True)
class Check:
    """detail: what was compared, or the first thing that is wrong, by name and by how much."""

    name: str
    outcome: Outcome
    detail: str = ""


def check(name: str, faults: Iterable[str], covered: str = "") -> Check:
    """Failed with the first of `faults` as its detail (and how many more there are), else passed."""
    found = list(faults)
    if not found:
        return Check(name, Outcome.PASSED, covered)
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Check(name, Outcome.FAILED, found[0] + more)


@dataclass(frozen=True)
class Subject:
    """What was checked: a recompute setting of our model, or somebody's module. left_out: why it was not, if so.

    attention: "" for somebody's module. figures: bytes, FLOPs and counts behind the checks.
    """

    name: str
    attention: str = ""
    checks: tuple[Check, ...] = ()
    left_out: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """`fused, softmax dropout`"""
        return f"{self.attention}, {self.name}" if self.attention else self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "attention": self.attention or None,
            "left_out": self.left_out or None,
            "checks": {check.name: {"outcome": str(check.outcome), "detail": check.detail} for check in self.checks},
            **self.figures,
        }


@dataclass(frozen=True)
class Report:
    """Subjects and notes. `print(report)` shows every check; `report.passed`: all were made and none failed."""

    subjects: tuple[Subject, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check was made, and none failed."""
        return not any(self.failures()) and not any(self.with_outcome(Outcome.NOT_CHECKED))

    def failures(self) -> Iterator[tuple[Subject, Check]]:
        """Every failed check with its subject, in order."""
        yield from self.with_outcome(Outcome.FAILED)

    def with_outcome(self, outcome: Outcome) -> Iterator[tuple[Subject, Check]]:
        """Every check of this outcome with its subject, in order."""
        for subject in self.subjects:
            yield from ((subject, check) for check in subject.checks if check.outcome == outcome)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        subjects = [subject.as_dict() for subject in self.subjects]
        return {"passed": self.passed, "subjects": subjects, "notes": list(self.notes)}

    def __str__(self) -> str:
        lines = []
        for subject in self.subjects:
            lines.append(f"{subject.title}: {subject.left_out}" if subject.left_out else subject.title)
            width = max((len(check.outcome) for check in subject.checks), default=0)
            for check in subject.checks:
                line = f"  {check.outcome:<{width}}  {check.name}{': ' if check.detail else ''}{check.detail}"
                lines += textwrap.wrap(line, TEXT_COLUMNS, subsequent_indent=" " * (width + 6))
        return "\n".join([*lines, *self.notes])


def merged(name: str, checks: Iterable[Check]) -> Check:
    """One check for several batches: the worst outcome, with the detail of the first that has it."""
    worst = max(checks, key=lambda found: _SEVERITY.index(found.outcome))
    return Check(name, worst.outcome, worst.detail)
