"""What the figures are measured against, on the Hopper GPUs that the targets are meant for."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import attention_cases as k2
from benchmarks import scores_cases as k1
from benchmarks.runner import Row

SOME_DROPOUT = 0.1
LENGTH = 4096  # at which K2 is judged
MFU_GOALS = {"gpt-1.3b": 0.50, "gpt-350m": 0.40, "gpt-760m": 0.45}
STEP_CONFIGS = ("gpt2-124m", "gpt-1.3b")  # judged, whether measured or not
WITHOUT_RECOMPUTE = {
    "unfused none", "fused none", "sdpa none",
    "plain eager", "plain sdpa", "HF eager", "HF sdpa", "Megatron local none",
}  # fmt: skip
COMMAND = "python benchmarks/run.py headline --json --out headline.json"


def judge(rows: Sequence[Row], on_gpu: bool) -> list[Row]:
    """A row for each target: target, wanted, measured, verdict; value and limit for programs.

    A CPU's figures stand there too, since ratios of the fallbacks say something, but only its bits are judged.
    """
    good = [row for row in rows if row["status"] == "ok"]
    targets = [_bits(rows), *_steps(good), *_scores(good), *_attention(good, on_gpu), *_use(good)]
    if not on_gpu:
        for target in targets[1:]:
            target["verdict"] = "not measured" if target["value"] is None else "not judged: CPU"
    return targets


def make_target(name: str, value: float | None, limit: float, least: bool, form: Callable[[float], str]) -> Row:
    """A row of judge. least: the limit is the lowest value that reaches the target; else the highest."""
    wanted = f"{'>=' if least else '<='} {form(limit)}"
    row = {"target": name, "wanted": wanted, "limit": limit, "value": value, "measured": "-", "verdict": "not measured"}
    if value is not None:
        missed = limit - value if least else value - limit
        verdict = "reached" if missed <= 0 else f"missed by {form(missed)}"
        row |= {"measured": form(value), "verdict": verdict}
    return row


def as_times(value: float) -> str:
    """A ratio."""
    return f"{value:.3f}x"


def as_share(value: float) -> str:
    """A share."""
    return f"{100 * value:.1f} %"


def as_count(value: float) -> str:
    """A whole number."""
    return f"{value:.0f}"


def _bits(rows: Sequence[Row]) -> Row:
    """Of whole models whose settings were compared by value; a failed comparison counts as a difference.

    torch's own attention is left out where it does not repeat itself: then no setting of it can.
    """
    compared = [row for row in rows if row["case"].startswith("bits")]
    restless = {row["case"] for row in compared if row["contender"] == "sdpa none" and row.get("different")}
    judged = [row for row in compared if not (row["case"] in restless and row["contender"].startswith("sdpa"))]
    wrong = sum(bool(row.get("different", ["failed"])) for row in judged)
    return make_target("bits: settings that differ from none", wrong if judged else None, 0, False, as_count)


def _steps(rows: Sequence[Row]) -> list[Row]:
    """Medians of ratios within a round, of contenders that took turns in one case; of several cases, the worst."""
    timed = [row for row in rows if "step_ms" in row]
    targets = []
    for config in dict.fromkeys((*STEP_CONFIGS, *(row["config"] for row in timed))):
        cases: dict[str, dict[str, list[float]]] = {}
        for row in timed:
            if row["config"] == config:
                cases.setdefault(row["case"], {})[row["contender"]] = row["all_step_ms"]
        pairs = [
            (f"{config}: unfused selective / none", _worst(cases, {"unfused selective"}, {"unfused none"}), 1.0),
            (f"{config}: fused all / fastest without", _worst(cases, {"fused all"}, WITHOUT_RECOMPUTE), 1.0),
            (f"{config}: unfused full / none", _worst(cases, {"unfused full"}, {"unfused none"}), 1.33),
            (f"{config}: fused full / none", _worst(cases, {"fused full"}, {"fused none"}), 1.33),
        ]
        targets += [make_target(name, value, limit, False, as_times) for name, value, limit in pairs]
    return targets


def _worst(cases: dict[str, dict[str, list[float]]], above: set[str], below: set[str]) -> float | None:
    """The fastest of `above` as a multiple of the fastest of `below`, compiled or not, in the case where it is most."""
    ratios = []
    for times in cases.values():
        sides = [
            min((value for name, value in times.items() if name.removesuffix(", compiled") in side),
                key=statistics.median, default=None)
            for side in (above, below)
        ]  # fmt: skip
        if all(sides):
            ratios.append(statistics.median(mine / other for mine, other in zip(*sides, strict=True)))
    return max(ratios, default=None)


def _over(values: dict[Any, float], above: Any, below: Any) -> float | None:
    return values[above] / values[below] if above in values and below in values else None


def _scores(rows: Sequence[Row]) -> list[Row]:
    rows = [row for row in rows if row.get("kernel") == "K1"]
    targets = []
    for direction in ("forward", "backward"):
        mine = [row for row in rows if row["contender"] == k1.OURS and row["direction"] == direction]
        shares = [row["of_copy"] for row in mine if row["of_copy"] is not None]
        targets.append(make_target(f"K1 {direction}: of copy, worst", min(shares, default=None), 0.85, True, as_share))
    speedups = []
    for length in {row["sequence"] for row in rows}:
        both = {
            name: [
                row["ms"]["median"]
                for row in rows
                if row["contender"] == name and row["sequence"] == length and row["dropout_p"] == SOME_DROPOUT
            ]
            for name in (k1.OURS, k1.CHAIN)
        }
        if all(len(times) == 2 for times in both.values()):  # forward and backward
            speedups.append(sum(both[k1.CHAIN]) / sum(both[k1.OURS]))
    return [
        *targets,
        make_target("K1: torch chain's time, both ways", min(speedups, default=None), 3.3, True, as_times),
    ]


def _attention(rows: Sequence[Row], on_gpu: bool) -> list[Row]:
    length = LENGTH if on_gpu else max((row["sequence"] for row in rows if row.get("kernel") == "K2"), default=0)
    targets = []
    for size in (64, 128):
        times = {
            (row["contender"], row["direction"], row["dropout_p"]): row["ms"]["median"]
            for row in rows
            if row.get("kernel") == "K2" and row["head_size"] == size and row["sequence"] == length
        }
        for baseline, name, direction, limit in (
            (k2.FLASH, "flash", "forward", 1.25), (k2.FLASH, "flash", "backward", 0.8),
            (k2.DETERMINISTIC, "determ. flash", "backward", 1.0),
        ):  # fmt: skip
            keys = [(name, direction, SOME_DROPOUT) for name in (baseline, k2.OURS)]
            name = f"K2 d={size} {direction}: {name}'s time"
            targets.append(make_target(name, _over(times, *keys), limit, True, as_times))
        for direction, limit in (("forward", 0.25 if size == 64 else 0.15), ("backward", 0.35)):
            ratio = _over(times, (k2.OURS, direction, SOME_DROPOUT), (k2.OURS, direction, 0.0))
            cost = None if ratio is None else ratio - 1
            targets.append(make_target(f"K2 d={size} {direction}: dropout's cost", cost, limit, False, as_share))
    return targets


def _use(rows: Sequence[Row]) -> list[Row]:
    targets = []
    for config, limit in MFU_GOALS.items():
        found = [
            row["mfu"]
            for row in rows
            if row.get("config") == config and row["contender"].startswith("fused all") and row.get("mfu") is not None
        ]
        targets.append(make_target(f"{config}: MFU of fused all", max(found, default=None), limit, True, as_share))
    return targets
