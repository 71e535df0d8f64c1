"""Rounds of fresh processes, one for each setting and round, never two at a time. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from megaselect.comparison.children import Ask
from megaselect.comparison.measurement import Answer, TrainMeasurement
from megaselect.comparison.row import Rounds, Row
from megaselect.comparison.summary import Measured
from megaselect.errors import ComparisonError
from megaselect.units import size

Report = Callable[[str], None]


def order(count: int, rounds: int) -> list[list[int]]:
    """The order of `count` rows in each round: every second one is the one before it backwards, the next begins later.

    Over a pair of rounds a machine that slows down steadily costs every row the same.
    """
    orders = []
    for number in range(rounds):
        first = number // 2 * count // max((rounds + 1) // 2, 1)
        turned = [(first + place) % count for place in range(count)]
        orders.append(turned[::-1] if number % 2 else turned)
    return orders


def run_rounds(rows: Sequence[Row], plan: Rounds, ask: Ask, report: Report) -> list[Measured]:
    """Measure all rows. A row that fails once is not tried again. Raises ComparisonError where none trains."""
    measured = [Measured(row, failure=row.missing()) for row in rows]
    total, done = len(rows) * plan.rounds, 0
    for number, places in enumerate(order(len(rows), plan.rounds), 1):
        for item in (measured[place] for place in places):
            done += 1
            if item.failure is None and item.absence is None:
                report(f"[{done:>{len(str(total))}}/{total}] round {number}, {item.row.name}: ")
                started = time.monotonic()
                answer = ask(item.row.job(plan, number))
                report(f"{_outcome(answer)} ({time.monotonic() - started:.1f} s)\n")
                _take(item, answer)
    if not any(item.rounds and item.failure is None for item in measured):
        raise ComparisonError(f"no setting trains; {measured[0].row.name}: {measured[0].failure}")
    return measured


def _take(item: Measured, answer: Answer) -> None:
    if answer.shared:
        raise ComparisonError(answer.failure or "a process failed")
    if answer.absence is not None:
        item.absence = answer.absence
    elif answer.measurement is None:
        item.failure = answer.failure or "a process failed"
    else:
        item.rounds.append(answer.measurement)


def _outcome(answer: Answer) -> str:
    if answer.absence is not None:
        return f"left out: {answer.absence}"
    if answer.measurement is None:
        return "stopped" if answer.shared else f"{answer.failure}"
    return f"{1e3 * _median_step(answer.measurement):.1f} ms a step, {size(answer.measurement.saved.measured)} saved"


def _median_step(measurement: TrainMeasurement) -> float:
    return statistics.median(sample.seconds for sample in measurement.samples)
