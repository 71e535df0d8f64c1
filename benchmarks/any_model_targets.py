"""What the part `any-model` is measured against, on a CPU too: bytes are the same everywhere, and times are ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.any_model_shapes import SHAPES
from benchmarks.any_model_steps import ratio
from benchmarks.any_model_ways import HF_FULL, NONE, SAC, is_ours
from benchmarks.runner import Row
from benchmarks.targets import as_count, as_times, make_target

SAVED_LIMIT, SAC_LIMIT, HF_LIMIT, PEAK_LIMIT = 0.45, 0.95, 0.85, 0.8
LESS_THAN_SAC = 1.0  # activations [b, s, h] a layer: 2sbh bytes of 16-bit numbers
MICROSECONDS = 12.0  # of following, an operator of forward


def judge(rows: Sequence[Row]) -> list[Row]:
    """See targets.judge. Of the setting of ours that each shape names; bits of all of them."""
    judged = [_bits(rows)]
    for shape, (_, setting, has_scores) in SHAPES.items():
        mine = [row for row in rows if row["status"] == "ok" and row.get("shape") == shape]
        if not mine:
            continue
        costs = {row["contender"]: row for row in mine if "operators" in row}
        steps: dict[str, Row] = {}
        for row in mine:  # of several cases the first, which has all that is eager
            if "operators" not in row:
                steps.setdefault(row["contender"], row)
        judged += _saved(shape, setting, steps)
        judged.append(_time(shape, setting, SAC, SAC_LIMIT, steps))
        judged.append(_time(shape, setting, HF_FULL, HF_LIMIT, steps))
        if has_scores:
            peak = _over(steps, "peak", setting, HF_FULL)
            judged.append(make_target(f"{shape}: peak, {setting} / {HF_FULL}", peak, PEAK_LIMIT, False, as_times))
        cost = costs[setting]["forward_us"]["median"] if setting in costs else None
        judged.append(make_target(f"{shape}: {setting}, an operator", cost, MICROSECONDS, False, _as_us))
    return judged


def _bits(rows: Sequence[Row]) -> Row:
    compared = [row for row in rows if is_ours(row["contender"]) and "operators" not in row]
    wrong = sum(not row.get("same_bits", False) for row in compared if row["status"] in ("ok", "error"))
    return make_target("bits: plans of ours that differ", wrong if compared else None, 0, False, as_count)


def _saved(shape: str, setting: str, steps: Mapping[str, Row]) -> list[Row]:
    less = None
    if all("saved_a_layer" in steps.get(name, {}) for name in (setting, SAC)):
        more = steps[setting]["saved_a_layer"] - steps[SAC]["saved_a_layer"]
        less = more / steps[setting]["activation_bytes"]
    share = _over(steps, "saved_measured", setting, NONE)
    return [
        make_target(f"{shape}: sbh a layer, {setting} - {SAC}", less, -LESS_THAN_SAC, False, _as_activations),
        make_target(f"{shape}: saved, {setting} / {NONE}", share, SAVED_LIMIT, False, as_times),
    ]


def _time(shape: str, setting: str, other: str, limit: float, steps: Mapping[str, Row]) -> Row:
    name = f"{shape}: step, {setting} / {other}"
    if any("all_step_ms" not in steps.get(contender, {}) for contender in (setting, other)):
        return make_target(name, None, limit, False, as_times)
    low, median, high = ratio(steps[setting]["all_step_ms"], steps[other]["all_step_ms"]).values()
    row = make_target(name, median, limit, False, as_times)
    return row | {"measured": f"{as_times(median)} ({low:.3f} {high:.3f})", "q20": low, "q80": high}


def _over(steps: Mapping[str, Row], what: str, above: str, below: str) -> float | None:
    values = [steps.get(name, {}).get(what) for name in (above, below)]
    return values[0] / values[1] if all(values) else None


def _as_us(value: float) -> str:
    return f"{value:.1f} us"


def _as_activations(value: float) -> str:
    return f"{value:.2f}"
