"""A verification on the console: a line a setting with a mark a check, then what failed and what was left out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaselect.report.text import size
from megaselect.verification.report import Check, Outcome, Report, Subject

STYLES = {
    Outcome.PASSED: "green",
    Outcome.WARNING: "yellow",
    Outcome.NOT_CHECKED: "yellow",
    Outcome.FAILED: "bold white on red",
}
MARKS = {Outcome.PASSED: "✓", Outcome.WARNING: "!", Outcome.NOT_CHECKED: "?", Outcome.FAILED: "✗"}
PLAIN_MARKS = {**MARKS, Outcome.PASSED: "ok", Outcome.FAILED: "NO"}  # where the output takes no more than ASCII
INDENT = "    "


def print_report(report: Report, checks: Sequence[str], console: Console) -> None:
    """checks: the columns, in order; a setting may lack some."""
    marks = MARKS if console.encoding.lower().startswith("utf") else PLAIN_MARKS
    console.print(_table(report, checks, marks))
    _wrapped(console, "-: has nothing to check there (near fp64: one setting an attention), or is left out")
    for outcome in (Outcome.FAILED, Outcome.WARNING, Outcome.NOT_CHECKED):
        for subject, check in report.with_outcome(outcome):
            console.print(Text(f"{marks[outcome]} {subject.title}: {check.name} {outcome}", STYLES[outcome]))
            _wrapped(console, check.detail, INDENT)
    for line in [*_details(report), *_left_out(report), *report.notes]:
        _wrapped(console, line)
    _wrapped(console, _verdict(report))


def _table(report: Report, checks: Sequence[str], marks: dict[Outcome, str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for name in ("attention", "setting"):
        table.add_column(name, vertical="bottom", no_wrap=True)
    for name in checks:
        table.add_column(name.replace(" ", "\n"), justify="center", vertical="bottom")
    table.add_column("saved", justify="right", vertical="bottom", no_wrap=True)
    attention = ""
    for subject in report.subjects:
        if attention and subject.attention != attention:
            table.add_section()
        shown = "" if subject.attention == attention else subject.attention
        attention = subject.attention
        table.add_row(shown, subject.name, *_cells(subject, checks, marks))
    return table


def _cells(subject: Subject, checks: Sequence[str], marks: dict[Outcome, str]) -> Iterator[Text]:
    found: dict[str, Check] = {check.name: check for check in subject.checks}
    for name in checks:
        check = found.get(name)
        yield Text(marks[check.outcome], STYLES[check.outcome]) if check else Text("-", "dim")
    saved = subject.figures.get("saved_bytes")
    yield Text("-", "dim") if saved is None else Text(size(saved))


def _details(report: Report) -> Iterator[str]:
    """What passed checks have to tell."""
    for subject, check in report.with_outcome(Outcome.PASSED):
        if check.detail:
            yield f"{subject.title}: {check.name}: {check.detail}"


def _left_out(report: Report) -> Iterator[str]:
    """Each reason once, with the settings that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for subject in report.subjects:
        if subject.left_out:
            reasons.setdefault((subject.attention, subject.left_out), []).append(subject.name)
    for (attention, reason), names in reasons.items():
        yield f"{attention}, {'; '.join(names)}: left out, {reason}"


def _verdict(report: Report) -> str:
    subjects = [subject for subject in report.subjects if subject.checks]
    checks = sum(len(subject.checks) for subject in subjects)
    failed = len(list(report.failures()))
    if failed:
        return f"FAILED: {failed} of {checks} checks of {len(subjects)} settings"
    return f"passed: {checks} checks of {len(subjects)} settings"


def _wrapped(console: Console, line: str, indent: str = "") -> None:
    for part in textwrap.wrap(line, console.width - len(indent)) or [""]:
        console.print(indent + part, markup=False, highlight=False)
