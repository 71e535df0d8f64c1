"""The tables of the part `scale`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.runner import Row
from benchmarks.tables import Table, failures, mebibytes, number, spread, without_empty_columns


def scale_tables(rows: Sequence[Row]) -> list[Table]:
    """Times, then bytes; what failed comes last."""
    good = [row for row in rows if row["status"] == "ok"]
    made = []
    for case in dict.fromkeys(row["case"] for row in good):
        group = [row for row in good if row["case"] == case]
        made += _time_tables(group) if "rank_step_ms" in group[0] else [_bytes_table(group)]
    return made + failures(rows)


def _title(row: Row) -> str:
    batch = f"{row['accumulated']} x {row['micro_batch']} x {row['sequence']} tokens a rank"
    return f"{row['config']}, {row['ranks']} ranks: {row['dtype']}, {batch}"


def _time_tables(rows: Sequence[Row]) -> list[Table]:
    times, phases = [], []
    for row in rows:
        low, middle, high = (f"{row['ratio'][name]:.3f}" for name in ("low", "median", "high"))
        step = row["rank_step_ms"]
        times.append([row["contender"], number(step["median"]), spread(step), middle, f"{low} {high}"])
        spans = [number(row[f"{phase}_ms"]) for phase in ("forward", "backward", "optimizer")]
        kept = [mebibytes(row.get("saved_measured"))]
        phases.append([row["contender"], *spans, number(row["processor_ms"]), f"{row['processor_ratio']:.3f}", *kept])
    lower = "phases: ms of the first rank; CPU: ms of the busiest rank's threads; kept: MiB"
    header = ["trainer", "fwd", "bwd", "optim.", "CPU", f"to {rows[0]['ratio_to']}", "kept"]
    return [
        Table(_title(rows[0]), ["trainer", "step ms", "20 .. 80 %", f"to {rows[0]['ratio_to']}", "20 .. 80 %"], times),
        without_empty_columns(Table(lower, header, phases)),
    ]


def _bytes_table(rows: Sequence[Row]) -> Table:
    lines = [
        [
            f"{row['contender']}{', 2 replicas' * (row['replicas'] > 1)}",
            str(row["sent_bytes"]),
            ", ".join(f"{name} {size}" for name, size in row["sent_by_function"].items()),
        ]
        for row in rows
    ]
    return Table(f"bytes sent a rank and step; {_title(rows[0])}", ["sharding, reduction", "bytes", "by"], lines)
