"""Results as a table of at most 80 columns, as Markdown, or as JSON."""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.any_model_tables import any_model_tables
from benchmarks.device import describe
from benchmarks.runner import Row
from benchmarks.scale_tables import scale_tables
from benchmarks.tables import Table, sweep_tables, tables, target_table

WIDTH = 80
TABLES = {"sweep": sweep_tables, "scale": scale_tables, "any-model": any_model_tables}


@dataclass
class Report:
    """Everything that a run of one part has to say. not_measured: rows of case, why and command."""

    part: str
    environment: dict[str, Any]
    arguments: dict[str, Any]
    rows: list[Row]
    not_measured: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    targets: list[Row] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """Of the rows."""
        return TABLES.get(self.part, tables)(self.rows)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)

    def text(self) -> str:
        """For a terminal."""
        blocks = ["\n".join(describe(self.environment)), *(_plain(table) for table in self.tables())]
        blocks += [textwrap.fill(note, WIDTH, break_on_hyphens=False) for note in self.notes]
        if self.not_measured:
            blocks.append("\n".join(["not measured", *(_plain_missing(row) for row in self.not_measured)]))
        if self.targets:
            blocks.append(_plain(target_table(self.targets)))
        return "\n\n".join(blocks)

    def markdown(self) -> str:
        """As the reports in docs/benchmarks/ are."""
        record = self.environment
        gpu = ", ".join(f"{name} {value}" for name, value in (record["gpu"] or {}).items())
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items() if version)
        blocks = [
            f"# Benchmark: {self.part}, {record['device']}, {record['date'][:10]}",
            f"    {record['command']}",
            f"{record['device']}; {record['cpu']}, {os.cpu_count()} cores, load average before the start "
            f"{record.get('load')}{'; ' + gpu if gpu else ''}; {versions}. "
            f"{record['date']}, commit {record['commit'] or 'unknown'}, sources {record['sources']}.",
            *self.notes,
        ]
        if self.targets:
            blocks.append(markdown_table(target_table(self.targets)))
        blocks += [markdown_table(table) for table in self.tables()]
        if self.not_measured:
            lines = [f"- {row['case']}: {row['why']}: `{row['command']}`" for row in self.not_measured]
            blocks += ["## not measured", "\n".join(lines)]
        return "\n\n".join(blocks) + "\n"

    def write(self, path: Path) -> None:
        """Markdown for .md, JSON for anything else."""
        path.write_text(self.markdown() if path.suffix == ".md" else json.dumps(self.document(), indent=2) + "\n")


def _plain_missing(row: Row) -> str:
    """Case and why, then the command, in lines that a shell takes as one."""
    why = textwrap.wrap(f"{row['case']}: {row['why']}", WIDTH - 2, break_on_hyphens=False)
    quoted = [shlex.quote(word) for word in shlex.split(row["command"])]
    lines = [""]
    for word in quoted:
        if lines[-1] and len(lines[-1]) + len(word) + 7 > WIDTH:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join([f"  {line}" for line in why] + ["    " + " \\\n    ".join(lines)])


def _plain(table: Table) -> str:
    """Columns two spaces apart; a last column that is too long goes on below."""
    lines = [list(table.header), *(list(line) for line in table.lines)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    room = WIDTH - sum(widths[:-1]) - 2 * (len(widths) - 1)
    numeric = widths[-1] <= room
    out = [table.title[:WIDTH]]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        if numeric:
            cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        else:
            cells += [cell.ljust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)]
            first, *rest = textwrap.wrap(line[-1], max(room, 8), break_on_hyphens=False) or [""]
            cells.append(first)
        out.append("  ".join(cells).rstrip())
        if not numeric and rest:
            out += [f"      {part}" for part in textwrap.wrap(" ".join(rest), WIDTH - 6, break_on_hyphens=False)]
    return "\n".join(out)


def markdown_table(table: Table) -> str:
    """Under its title."""
    lines = [f"## {table.title}", "", "| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table.lines]
    return "\n".join(lines)
