"""A whole comparison: from a config and names of settings to a result. No torch: the processes it starts need it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from megaselect import __version__
from megaselect.comparison.children import Ask, Children, largest_micro_batch
from megaselect.comparison.model_rows import PEERS_NOTE
from megaselect.comparison.provenance import source_commit
from megaselect.comparison.result import Comparison, Context
from megaselect.comparison.rounds import Report, run_rounds
from megaselect.comparison.row import Rounds, Row
from megaselect.comparison.settings import ConfigRow
from megaselect.comparison.summary import Measured, summarise
from megaselect.comparison.verdict import make_verdict
from megaselect.units import size


@dataclass(frozen=True)
class Request:
    """What to compare. command: as typed, for the record. limit_bytes: for the search, see BatchJob.

    config, config_name, tokens_per_step: see Context; the tokens of a model of anybody's are told by who measures it.
    """

    config: dict[str, Any]
    config_name: str
    rows: Sequence[Row]
    rounds: Rounds
    command: str
    tokens_per_step: int | None = None
    notes: Sequence[str] = ()
    find_largest_micro_batch: bool = False
    limit_bytes: int | None = None


def compare(request: Request, report: Report) -> Comparison:
    """Measure and judge. `report` gets pieces of lines as it goes on. Raises ComparisonError."""
    with Children() as children:
        measured = run_rounds(request.rows, request.rounds, children.ask, report)
        if request.find_largest_micro_batch:
            _find_largest(measured, request, children.ask, report)
    context = _context(request, measured)
    settings = summarise(measured, context.tokens_per_step)
    return Comparison(context, settings, make_verdict(settings))


def _find_largest(measured: Sequence[Measured], request: Request, ask: Ask, report: Report) -> None:
    for item in measured:
        if item.failure is None and isinstance(item.row, ConfigRow):
            report(f"largest micro-batch, {item.row.name}: ")
            config = item.row.config
            start = config.training.micro_batch_size
            largest, beyond = largest_micro_batch(ask, config.to_dict(), start, request.limit_bytes)
            item.largest_micro_batch = largest
            report(f"{largest}{f'; beyond it: {beyond}' if beyond else ' or more'}\n")


def _shared_notes(measured: Sequence[Measured]) -> list[str]:
    """What the measurements note, once for rows that share it, without names where all do."""
    names: dict[str, list[str]] = {}
    for item in measured:
        for note in item.rounds[0].notes if item.rounds else ():
            names.setdefault(note, []).append(item.row.name)
    count = sum(bool(item.rounds) for item in measured)
    return [note if len(rows) == count else f"{', '.join(rows)}: {note}" for note, rows in names.items()]


def _context(request: Request, measured: Sequence[Measured]) -> Context:
    one = next(item.rounds[0] for item in measured if item.rounds)
    plan, model = request.rounds, one.model
    notes = list(request.notes)
    if any(item.rounds and item.row.about.is_peer for item in measured):
        notes.append(PEERS_NOTE)
    notes += _shared_notes(measured)
    notes += [f"{item.row.name} is left out: {item.absence}" for item in measured if item.absence is not None]
    if request.limit_bytes is not None:
        notes.append(f"largest micro-batch within {size(request.limit_bytes)}")
    return Context(
        config_name=request.config_name,
        config=request.config,
        device=one.device,
        dtype=one.dtype,
        parameters=one.parameters,
        tokens_per_step=model.tokens if model else request.tokens_per_step,
        peak_flops=one.peak_flops,
        steps=plan.steps,
        warmup_steps=plan.warmup_steps,
        rounds=plan.rounds,
        torch_version=one.torch_version,
        megaselect_version=__version__,
        python_version=platform.python_version(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        command=request.command,
        commit=source_commit(),
        notes=tuple(notes),
        model=model,
    )
