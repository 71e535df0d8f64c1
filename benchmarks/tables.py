"""Results as tables: cells are text, ordered as they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.runner import Row

MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Table:
    """lines: cells as text; the first column is flush left."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


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
    return made + failures(rows)


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
            rate, share = number(row["tflop_per_s"]), row.get("of_matmul")
        else:
            rate, share = number(row["gb_per_s"]) if row.get("gb_per_s") else "-", row.get("of_copy")
        error = "-" if row["error"] is None else f"{row['error']:.1e}"
        times = "-" if row.get("times_ours") is None else f"{row['times_ours']:.2f}"
        direction = {"forward": "fwd", "backward": "bwd", "": ""}[row["direction"]]
        median = number(row["ms"]["median"])
        lines.append(
            [cut(row["contender"], 20), direction, f"{row['dropout_p']:g}", median, spread(row["ms"]), rate,
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
        phases = [number(row[f"{phase}_ms"]) for phase in ("forward", "backward")]
        low, ratio, high = (f"{row['ratio'][name]:.3f}" for name in ("low", "median", "high"))
        times.append([name, number(step["median"]), spread(step), *phases, ratio, f"{low} {high}"])
        use = [f"{row['tokens_per_s']:.0f}", _percent(row["mfu"]), _percent(row["hfu"]), _gibibytes(row)]
        saved = [mebibytes(row.get("saved_predicted")), _exactness(row)]
        sizes.append([name, *use, *saved, number(row["optimizer_ms"])])
    header = ["setting", "tokens/s", "MFU", "HFU", "peak", "kept", "found", "optim."]
    lower_title = f"ratio: to {rows[0]['ratio_to']}. peak: GiB; kept: MiB for backward, predicted; found: measured"
    return [
        Table(title, ["setting", "step ms", "20 .. 80 %", "fwd", "bwd", "ratio", "20 .. 80 %"], times),
        without_empty_columns(Table(lower_title, header, sizes)),
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
            step = [number(row["step_ms"]["median"]), spread(row["step_ms"]), f"{row['ratio']['median']:.3f}"]
            use = [f"{row['tokens_per_s']:.0f}", _percent(row["mfu"]), _gibibytes(row)]
            lines.append([cut(row["contender"], 17), *size, *step, *use])
    header = ["setting", "s", "b", "step ms", "20 .. 80 %", "ratio", "tokens/s", "MFU", "peak"]
    table = without_empty_columns(Table("sweep; ratio: to the first of its size; peak: GiB", header, lines))
    return [*([table] if lines else []), *failures(rows)]


def failures(rows: Sequence[Row]) -> list[Table]:
    """One line for all contenders of a case with the same reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            groups.setdefault((row["case"], row["status"], row["reason"]), []).append(row["contender"] or "all")
    lines = [
        [status, f"{cut(case.split(' [')[0], 30)}: {', '.join(dict.fromkeys(names))}: {reason}"]
        for (case, status, reason), names in groups.items()
    ]
    return [Table("no result", ["status", "case, what and why"], lines)] if lines else []


def without_empty_columns(table: Table) -> Table:
    """Columns that hold nothing but dashes say nothing."""
    kept = [column for column in range(len(table.header)) if any(line[column] != "-" for line in table.lines)]
    lines = [[line[column] for column in kept] for line in table.lines]
    return Table(table.title, [table.header[column] for column in kept], lines)


def _short(contender: str) -> str:
    """+c: compiled."""
    return cut(contender.replace(", compiled", " +c"), 23)


def _exactness(row: Row) -> str:
    """Whether the ledger measured what was predicted; for baselines what it measured."""
    predicted, measured = row.get("saved_predicted"), row.get("saved_measured")
    if measured is None:
        return "-"
    if predicted is None:
        return mebibytes(measured)
    return "equal" if predicted == measured else f"{measured - predicted:+d} B"


def target_table(targets: Sequence[Row]) -> Table:
    """Of what a judge says."""
    return Table("targets", ["target", "wanted", "measured", "verdict"], [
        [target["target"], target["wanted"], target["measured"], target["verdict"]] for target in targets
    ])  # fmt: skip


def cut(text: str, width: int) -> str:
    """With a mark where something is left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def number(value: float) -> str:
    """Four significant digits without an exponent."""
    return f"{value:.4g}" if 0.001 <= abs(value) < 10_000 else f"{value:.0f}" if value else "0"


def spread(times: Row) -> str:
    """The 20 % and the 80 % quantile."""
    return f"{number(times['q20'])} {number(times['q80'])}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _gibibytes(row: Row) -> str:
    return "-" if row.get("peak_bytes") is None else f"{row['peak_bytes'] / GIBIBYTE:.2f}"


def mebibytes(count: int | None) -> str:
    """A dash for None."""
    return "-" if count is None else number(count / MEBIBYTE)
