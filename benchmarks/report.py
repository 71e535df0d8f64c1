"""Results as a table of at most 80 columns, as Markdown, or as JSON."""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.device import describe
from benchmarks.runner import Row

WIDTH = 80
MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Table:
    """lines: cells as text; the first column is flush left."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


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
        return sweep_tables(self.rows) if self.part == "sweep" else tables(self.rows)

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


def tables(rows: Sequence[Row]) -> list[Table]:
    """One or more tables a case, by what its rows hold; what failed comes last."""
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    made = []
    bits = [row for row in rows if "different" in row]
    if bits:
        made.append(_bits_table(bits))
    for case, group in by_case.items():
        good = [row for row in group if row["status"] == "ok"]
        if any("ms" in row for row in good):
            made.append(_kernel_table(case, good))
        if any("step_ms" in row for row in good):
            made += _step_tables(case, [row for row in good if "step_ms" in row])
        if any("largest_micro_batch" in row for row in good):
            made.append(_largest_table(case, good))
    return made + _failures(rows)


def _bits_table(rows: Sequence[Row]) -> Table:
    lines = []
    by_case: dict[str, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    for case, group in by_case.items():
        differing = [row["contender"] for row in group if row["different"]]
        verdict = f"DIFFER: {'; '.join(differing)}" if differing else "bitwise equal"
        lines.append([case.removeprefix("bits "), str(len(group)), str(group[0]["tensors"]), verdict])
    return Table("loss and every gradient, by value", ["model", "settings", "tensors", "verdict"], lines)


def _kernel_table(case: str, rows: Sequence[Row]) -> Table:
    header = ["contender", "", "p", "ms", "20 .. 80 %", "rate", "share", "x ours", "error"]
    lines = []
    for row in rows:
        if row.get("tflop_per_s"):
            rate, share = _number(row["tflop_per_s"]), row.get("of_matmul")
        else:
            rate, share = _number(row["gb_per_s"]) if row.get("gb_per_s") else "-", row.get("of_copy")
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        times = "-" if row.get("times_ours") is None else f"{row['times_ours']:.2f}"
        direction = {"forward": "fwd", "backward": "bwd", "": ""}[row["direction"]]
        median = _number(row["ms"]["median"])
        lines.append(
            [_cut(row["contender"], 20), direction, f"{row['dropout_p']:g}", median, _spread(row["ms"]), rate,
             "-" if share is None else f"{share:.0%}", times, error]
        )  # fmt: skip
    unit = "rate: TFLOP/s of the live half" if rows[0].get("tflop_per_s") else "rate: GB/s of the least bytes"
    return Table(f"{case.split(' [')[0]}; {unit}", header, lines)


def _step_tables(case: str, rows: Sequence[Row]) -> list[Table]:
    shape = rows[0]
    name = case.split(" [")[0].split(" s=")[0]
    title = f"{name}: {shape['dtype']}, micro-batch {shape['micro_batch']} x {shape['sequence']} tokens"
    times, sizes = [], []
    for row in rows:
        step = row["step_ms"]
        name = _short(row["contender"])
        phases = [_number(row[f"{phase}_ms"]) for phase in ("forward", "backward")]
        low, ratio, high = (f"{row['ratio'][name]:.3f}" for name in ("low", "median", "high"))
        times.append([name, _number(step["median"]), _spread(step), *phases, ratio, f"{low} {high}"])
        use = [f"{row['tokens_per_s']:.0f}", _percent(row["mfu"]), _percent(row["hfu"]), _gibibytes(row)]
        saved = [_mebibytes(row.get("saved_predicted")), _exactness(row)]
        sizes.append([name, *use, *saved, _number(row["optimizer_ms"])])
    header = ["setting", "tokens/s", "MFU", "HFU", "peak", "kept", "found", "optim."]
    lower_title = f"ratio: to {rows[0]['ratio_to']}. peak: GiB; kept: MiB for backward, predicted; found: measured"
    return [
        Table(title, ["setting", "step ms", "20 .. 80 %", "fwd", "bwd", "ratio", "20 .. 80 %"], times),
        _without_empty_columns(Table(lower_title, header, sizes)),
    ]


def _largest_table(case: str, rows: Sequence[Row]) -> Table:
    lines = [[row["contender"], str(row["largest_micro_batch"]), row["beyond"] or "-"] for row in rows]
    return Table(case.split(" [")[0], ["setting", "largest b", "what a larger one says"], lines)


def sweep_tables(rows: Sequence[Row]) -> list[Table]:
    """All sizes of a sweep in one table; what failed comes last."""
    lines = []
    for row in rows:
        if row["status"] == "ok" and "step_ms" in row:
            size = [str(row["sequence"]), str(row["micro_batch"])]
            step = [_number(row["step_ms"]["median"]), _spread(row["step_ms"]), f"{row['ratio']['median']:.3f}"]
            use = [f"{row['tokens_per_s']:.0f}", _percent(row["mfu"]), _gibibytes(row)]
            lines.append([_cut(row["contender"], 17), *size, *step, *use])
    header = ["setting", "s", "b", "step ms", "20 .. 80 %", "ratio", "tokens/s", "MFU", "peak"]
    table = _without_empty_columns(Table("sweep; ratio: to the first of its size; peak: GiB", header, lines))
    return [*([table] if lines else []), *_failures(rows)]


def _failures(rows: Sequence[Row]) -> list[Table]:
    """One line for all contenders of a case with the same reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            groups.setdefault((row["case"], row["status"], row["reason"]), []).append(row["contender"] or "all")
    lines = [
        [status, f"{_cut(case.split(' [')[0], 30)}: {', '.join(dict.fromkeys(names))}: {reason}"]
        for (case, status, reason), names in groups.items()
    ]
    return [Table("no result", ["status", "case, what and why"], lines)] if lines else []


def _without_empty_columns(table: Table) -> Table:
    """Columns that hold nothing but dashes say nothing."""
    kept = [column for column in range(len(table.header)) if any(line[column] != "-" for line in table.lines)]
    lines = [[line[column] for column in kept] for line in table.lines]
    return Table(table.title, [table.header[column] for column in kept], lines)


def _short(contender: str) -> str:
    """+c: compiled."""
    return _cut(contender.replace(", compiled", " +c"), 23)


def _exactness(row: Row) -> str:
    """Whether the ledger measured what was predicted; for baselines what it measured."""
    predicted, measured = row.get("saved_predicted"), row.get("saved_measured")
    if measured is None:
        return "-"
    if predicted is None:
        return _mebibytes(measured)
    return "equal" if predicted == measured else f"{measured - predicted:+d} B"


def target_table(targets: Sequence[Row]) -> Table:
    return Table("targets", ["target", "wanted", "measured", "verdict"], [
        [target["target"], target["wanted"], target["measured"], target["verdict"]] for target in targets
    ])  # fmt: skip


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
    lines = [f"## {table.title}", "", "| " + " | ".join(table.header) + " |", "|" + "---|" * len(table.header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table.lines]
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _number(value: float) -> str:
    """Four significant digits without an exponent."""
    return f"{value:.4g}" if 0.001 <= abs(value) < 10_000 else f"{value:.0f}" if value else "0"


def _spread(times: Row) -> str:
    """The 20 % and the 80 % quantile."""
    return f"{_number(times['q20'])} {_number(times['q80'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _gibibytes(row: Row) -> str:
    return "-" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / GIBIBYTE:.2f}"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else _number(count / MEBIBYTE)
