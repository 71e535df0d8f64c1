"""Ways to keep within a budget of bytes, each given the bytes that another has been found to save."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from benchmarks.any_model_ckptplan import CKPTPLAN, planned
from benchmarks.any_model_compiled import compiled
from benchmarks.any_model_shapes import Batch
from benchmarks.any_model_steps import COMPILED
from benchmarks.any_model_ways import BUDGETED, EAGER, NONE, Forward, Way, within_bytes
from benchmarks.runner import Row

SHARES = (0.75, 0.5, 0.25)  # of the activations that torch's partitioner would keep
SHARE = 0.5


class Known:
    """Bytes saved by those contenders that have been counted."""

    def __init__(self) -> None:
        self.saved: dict[str, int] = {}

    def counted(self, row: Row) -> None:
        """Note a contender's."""
        if row.get("saved_measured") is not None:
            self.saved[row["contender"]] = row["saved_measured"]

    def bytes_as(self, share: float) -> int:
        """What torch's budget of that share saves; where it has none here, that share of what everything takes."""
        return self.saved.get(compiled_name(share)) or int(share * self.saved[NONE])


def compiled_name(share: float) -> str:
    """Of the contender with torch's budget."""
    return f"{COMPILED} {share:g}"


def eager_ways(known: Known) -> dict[str, Way]:
    """Those that compile nothing; ckptplan is to halve what the first saves."""
    return {**EAGER, f"{CKPTPLAN} {SHARE:g}": functools.partial(_ckptplan, known, SHARE)}


def compiled_ways(judged: str, _: Known) -> dict[str, Way]:
    """Those beside torch's budget, and it."""
    return {NONE: EAGER[NONE], judged: EAGER[judged], compiled_name(SHARE): functools.partial(compiled, SHARE)}


def budget_ways(known: Known, shares: Sequence[float] = SHARES) -> dict[str, Way]:
    """torch's budgets, then ours and ckptplan's plans for the same bytes each."""
    ways: dict[str, Way] = {NONE: EAGER[NONE], COMPILED: functools.partial(compiled, 1.0)}
    ways |= {compiled_name(share): functools.partial(compiled, share) for share in shares}
    ways |= {f"{BUDGETED} as {share:g}": functools.partial(_ours, known, share) for share in shares}
    return ways | {f"{CKPTPLAN} as {share:g}": functools.partial(_ckptplan, known, share) for share in shares}


def _ours(known: Known, share: float, model: nn.Module, batch: Batch) -> Forward:
    return within_bytes(known.bytes_as(share), model, batch)


def _ckptplan(known: Known, share: float, model: nn.Module, batch: Batch) -> Forward:
    return planned(known.bytes_as(share), model, batch)
