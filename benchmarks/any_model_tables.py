"""The tables of the part `any-model`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.any_model_ways import HF_FULL, NONE, SAC
from benchmarks.runner import Row
from benchmarks.tables import Table, cut, failures, mebibytes, number, spread, without_empty_columns


def any_model_tables(rows: Sequence[Row]) -> list[Table]:
    """Of each case times, then bytes and bits; what failed or is absent comes last."""
    good = [row for row in rows if row["status"] == "ok"]
    made = []
    for case in dict.fromkeys(row["case"] for row in good):
        group = [row for row in good if row["case"] == case]
        made += [_cost_table(case, group)] if "operators" in group[0] else _step_tables(case, group)
    return made + failures(rows)


def _step_tables(case: str, rows: Sequence[Row]) -> list[Table]:
    times = [
        [row["contender"], number(row["step_ms"]["median"]), spread(row["step_ms"]), *_ratio(row, NONE)]
        + [_ratio(row, base)[0] for base in (SAC, HF_FULL)]
        for row in rows
        if "step_ms" in row
    ]
    everything = next((row["saved_measured"] for row in rows if row["contender"] == NONE), None)
    sizes = [
        [
            row["contender"],
            mebibytes(row.get("saved_measured")),
            f"{row['saved_measured'] / everything:.3f}" if everything and "saved_measured" in row else "-",
            f"{row['saved_a_layer'] / row['activation_bytes']:.2f}" if "saved_a_layer" in row else "-",
            mebibytes(row["held"]),
            mebibytes(row["peak"]),
            cut(row["gradients"], 10),
        ]
        for row in rows
    ]
    header = ["setting", "step ms", "20 .. 80 %", "to none", "20 .. 80 %", "to SAC", "to HF"]
    lower = ["setting", "saved", "to none", "a layer", "held", "peak", "loss, grads"]
    title = "MiB; saved: by the ledger; held: by the allocator; a layer: activations"
    return [without_empty_columns(Table(case, header, times)), without_empty_columns(Table(title, lower, sizes))]


def _ratio(row: Row, base: str) -> tuple[str, str]:
    """The median, and the quantiles."""
    found = row["ratios"].get(base)
    if found is None:
        return "-", "-"
    return f"{found['median']:.3f}", f"{found['low']:.3f} {found['high']:.3f}"


def _cost_table(case: str, rows: Sequence[Row]) -> Table:
    header = ["setting", "operators", "forward", "20 .. 80 %", "step", "20 .. 80 %"]
    lines = [
        [row["contender"], str(row["operators"])]
        + [part for way in ("forward_us", "step_us") for part in _microseconds(row[way])]
        for row in rows
    ]
    return Table(f"{case}: processor us beyond none, an operator of forward", header, lines)


def _microseconds(found: Row) -> tuple[str, str]:
    return f"{found['median']:.1f}", f"{found['low']:.1f} {found['high']:.1f}"
