"""Times with medians and quantiles. What is compared takes turns: what disturbs the machine disturbs all alike."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.device import free_memory
from megaselect.comparison.step_times import quantiles
from megaselect.devices import is_out_of_memory
from megaselect.training.phases import Clock

FLUSH_BYTES = 1 << 28  # far more than any second-level cache holds
WARM_UP_CALLS = 3


def summary(milliseconds: Sequence[float]) -> dict[str, float]:
    """As JSON has it."""
    low, median, high = quantiles(milliseconds)
    return {"q20": low, "median": median, "q80": high, "count": len(milliseconds)}


def by_round(milliseconds: Sequence[float], rounds: int) -> list[float]:
    """The median of each round, of a contender's times as `take_turns` gives them."""
    calls = len(milliseconds) // rounds
    return [statistics.median(milliseconds[first : first + calls]) for first in range(0, calls * rounds, calls)]


class Stopwatch:
    """Times calls one by one, with a cold second-level cache on a GPU as do_bench has it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._clock = Clock(device)
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def time(self, run: Callable[[], Any], calls: int) -> list[float]:
        """Milliseconds of each call."""
        self._clock.clear()
        for _ in range(calls):
            if self._flush is not None:
                self._flush.zero_()  # also gives the host a head start, so that launches leave no gap
            self._clock.mark()
            run()
            self._clock.mark()
        return self._clock.milliseconds()[::2]


class ProcessorStopwatch:
    """Times calls one by one by what this process's threads have computed: others that run meanwhile do not count."""

    def time(self, run: Callable[[], Any], calls: int) -> list[float]:
        """Milliseconds of each call."""
        milliseconds = []
        for _ in range(calls):
            begins = time.process_time_ns()
            run()
            milliseconds.append((time.process_time_ns() - begins) / 1e6)
        return milliseconds


@dataclass
class Timed:
    """All milliseconds of one contender, or why there are none (status oom or error)."""

    milliseconds: list[float] = field(default_factory=list)
    status: str = "ok"
    reason: str = ""


def failure(error: BaseException) -> tuple[str, str]:
    """(status, reason) of a case or contender that raised, in one line."""
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return ("oom" if is_out_of_memory(error) else "error"), f"{type(error).__name__}: {first_line}"[:300]


def attempt(_: str, work: Callable[[], Any]) -> tuple[str, str]:
    """Run something that may fail: (status, reason), which is ("ok", "") where it did not."""
    try:
        work()
    except Exception as error:
        result = failure(error)
    else:
        return "ok", ""
    free_memory()  # outside of the handler: the traceback would keep tensors alive
    return result


def take_turns(
    runs: dict[str, Callable[[], Any]],
    stopwatch: Stopwatch | ProcessorStopwatch,
    rounds: int,
    seconds: float,
    attempt: Callable[[str, Callable[[], Any]], tuple[str, str]] = attempt,
) -> dict[str, Timed]:
    """Time every run in every round; each round begins with another one. About `seconds` in all, after warm-up.

    A run that fails has no times at all, since it did not share all rounds.
    """
    results = {name: Timed() for name in runs}
    calls: dict[str, int] = {}

    def warm_up(name: str) -> None:
        stopwatch.time(runs[name], WARM_UP_CALLS - 1)  # compiles
        once = min(stopwatch.time(runs[name], 1)) / 1e3
        share = seconds / (len(runs) * rounds)
        calls[name] = min(max(int(share / max(once, 1e-6)), 1), 100)

    def take(name: str) -> None:
        results[name].milliseconds += stopwatch.time(runs[name], calls[name])

    for name in runs:
        results[name].status, results[name].reason = attempt(name, functools.partial(warm_up, name))
    for number in range(rounds):
        names = [name for name in runs if results[name].status == "ok"]
        start = number % max(len(names), 1)
        for name in names[start:] + names[:start]:
            status, reason = attempt(name, functools.partial(take, name))
            if status != "ok":
                results[name] = Timed([], status, reason)
    return results
