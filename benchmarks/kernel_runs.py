"""What the kernel benchmarks share: contenders, ceilings measured beside them, and result rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.runner import Bench, Row
from benchmarks.timing import summary, take_turns

COPY, MATMUL = "copy", "matmul"
SEED = 1234


@dataclass(frozen=True)
class Contender:
    """One thing to time. direction: forward or backward; error: against fp64, None where masks are its own."""

    name: str
    direction: str
    dropout_p: float
    run: Callable[[], Any]
    error: float | None = None
    bytes: int | None = None
    flops: int | None = None

    @property
    def key(self) -> str:
        """Unique within a case."""
        return f"{self.name}|{self.direction}|{self.dropout_p:g}"


def dtype_of(bench: Bench) -> torch.dtype:
    """bf16 on a GPU; fp32 on a CPU, whose fallbacks are for that."""
    return torch.bfloat16 if bench.on_gpu else torch.float32


def copy_ceiling(bench: Bench) -> Contender:
    """A device-to-device copy, counting bytes read and written."""
    source = torch.randn(1 << (28 if bench.on_gpu else 22), device=bench.device, dtype=dtype_of(bench))
    target = torch.empty_like(source)
    size = 2 * source.numel() * source.element_size()
    return Contender(COPY, "", 0.0, lambda: target.copy_(source), bytes=size)


def matmul_ceiling(bench: Bench) -> Contender:
    """A large square product of random matrices."""
    size = 8192 if bench.on_gpu else 512
    left, right = (torch.randn(size, size, device=bench.device, dtype=dtype_of(bench)) for _ in range(2))
    return Contender(MATMUL, "", 0.0, lambda: left @ right, flops=2 * size**3)


def prepare(
    bench: Bench, makers: Sequence[tuple[str, float, Callable[[], list[Contender]]]]
) -> tuple[list[Contender], list[Row]]:
    """Contenders of (name, dropout_p, maker), and a row for each maker that raised."""
    contenders: list[Contender] = []
    failed: list[Row] = []
    for name, dropout_p, make in makers:
        status, reason = bench.attempt(f"{name}|{dropout_p:g}", lambda make=make: contenders.extend(make()))
        if status != "ok":
            failed.append({"contender": name, "dropout_p": dropout_p, "status": status, "reason": reason})
    return contenders, failed


def measure(bench: Bench, contenders: Sequence[Contender], ours: str, shape: Row) -> list[Row]:
    """A row for each contender: time, error, rates as shares of the ceilings, and its time as a multiple of ours."""
    runs = {item.key: item.run for item in contenders}
    timed = take_turns(runs, bench.stopwatch, bench.rounds, bench.seconds, bench.attempt)
    rows = []
    for item in contenders:
        result = timed[item.key]
        row = {**shape, "contender": item.name, "direction": item.direction, "dropout_p": item.dropout_p}
        row |= {"status": result.status, "reason": result.reason, "error": item.error}
        if result.status == "ok":
            row["ms"] = summary(result.milliseconds)
            row |= _rates(item, row["ms"]["median"])
        rows.append(row)
    _compare(rows, ours)
    return rows


def _rates(item: Contender, milliseconds: float) -> Row:
    return {
        "gb_per_s": item.bytes / milliseconds / 1e6 if item.bytes else None,
        "tflop_per_s": item.flops / milliseconds / 1e9 if item.flops else None,
    }


def _compare(rows: list[Row], ours: str) -> None:
    """Adds of_copy, of_matmul and times_ours: above 1 where the contender is slower than ours with the same dropout."""
    ceilings = {row["contender"]: row for row in rows if row["status"] == "ok" and not row["direction"]}
    medians = {
        (row["direction"], row["dropout_p"]): row["ms"]["median"]
        for row in rows
        if row["contender"] == ours and row["status"] == "ok"
    }
    for row in rows:
        if row["status"] != "ok":
            continue
        copy, matmul = ceilings.get(COPY), ceilings.get(MATMUL)
        row["of_copy"] = row["gb_per_s"] / copy["gb_per_s"] if copy and row["gb_per_s"] else None
        row["of_matmul"] = row["tflop_per_s"] / matmul["tflop_per_s"] if matmul and row["tflop_per_s"] else None
        mine = medians.get((row["direction"], row["dropout_p"]))
        row["times_ours"] = row["ms"]["median"] / mine if mine else None
