"""What the part `scale` is measured against. Ratios are of steps in the same round; medians and quantiles of them."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.runner import Row
from benchmarks.targets import as_count, as_times, make_target
from megaselect.comparison.step_times import quantiles

BASE, NATIVE, ALL = "none", "none, native", "all"
EACH_ALONE, ONE_RANK = "none, each alone", "none, one rank"
GRADIENTS, REPLICATED = "none, gradients", "none, replicated"
PLAIN, PLAIN_CHECKPOINT, PLAIN_SAC = "plain", "plain, checkpoint", "plain, SAC"
COUNTED, REDUCTIONS = ("parameters", "gradients", "none"), ("ordered", "native")
COMMAND = "python benchmarks/run.py scale --device cuda --json --out scale.json"
# above, below, the limit of their ratio, and whether it is the least
TIMES = (
    (BASE, NATIVE, 1.03, False),
    (BASE, PLAIN, 0.93, False),
    (ALL, PLAIN_CHECKPOINT, 0.80, False),
    (ALL, PLAIN_SAC, 0.88, False),
    (EACH_ALONE, BASE, 0.90, True),  # weak scaling on cores that are as busy either way, by what ranks share
    (EACH_ALONE, GRADIENTS, 0.90, True),
    (EACH_ALONE, REPLICATED, 0.90, True),
    (ONE_RANK, BASE, 0.90, True),  # and beside idle ones
)
SAVED_LIMIT = 0.5


def judge(rows: Sequence[Row], on_gpu: bool) -> list[Row]:
    """See targets.judge. On a CPU too: ranks on one machine's cores are what can be measured anywhere."""
    good = [row for row in rows if row["status"] == "ok"]
    timed = {row["contender"]: row for row in good if "rank_step_ms" in row}
    return [*(_ratio(timed, *pair) for pair in TIMES), _saved(timed), *_sent(good)]


def _ratio(timed: dict[str, Row], above: str, below: str, limit: float, least: bool) -> Row:
    name = f"step: {above} / {below}"
    if above not in timed or below not in timed:
        return make_target(name, None, limit, least, as_times)
    pairs = zip(timed[above]["all_rank_step_ms"], timed[below]["all_rank_step_ms"], strict=True)
    low, middle, high = quantiles([mine / other for mine, other in pairs])
    row = make_target(name, middle, limit, least, as_times)
    return row | {"measured": f"{as_times(middle)} ({low:.3f} {high:.3f})", "q20": low, "q80": high}


def _saved(timed: dict[str, Row]) -> Row:
    both = [timed.get(name, {}).get("saved_measured") for name in (ALL, PLAIN)]
    value = both[0] / both[1] if all(both) else None
    return make_target(f"kept for backward: {ALL} / {PLAIN}", value, SAVED_LIMIT, False, as_times)


def _sent(rows: Sequence[Row]) -> list[Row]:
    """Bytes that the ordered reduction sends beyond torch's own, on the rank that sends most."""
    sent = {
        (row["replicas"], row["sharding"], row["reduction"]): row["sent_bytes"] for row in rows if "sent_bytes" in row
    }
    targets = []
    for replicas, sharding in ((1, "parameters"), (1, "gradients"), (1, "none"), (2, "parameters"), (2, "gradients")):
        ours, theirs = (sent.get((replicas, sharding, reduction)) for reduction in REDUCTIONS)
        more = None if ours is None or theirs is None else ours - theirs
        name = f"more bytes: {sharding}{', 2 replicas' * (replicas > 1)}"
        targets.append(make_target(name, more, 0, False, as_count))
    return targets
