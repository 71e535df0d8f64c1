"""A comparison on the console, in 80 columns: the headline, then memory and time in detail, then the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaselect.comparison.result import Comparison, TrainedSetting
from megaselect.comparison.step_times import slowdown
from megaselect.units import GIB_BYTES, MIB_BYTES

GIB_FROM_BYTES = 100 * GIB_BYTES  # a table whose largest figure reaches this is in GiB
UNKNOWN = "-"
Cell = Callable[[TrainedSetting], str | None]


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Columns of which nothing is known are left out; a setting that did not train has its reason below."""
    trained = comparison.trained
    unit, unit_bytes = _unit(trained)
    for title, columns in (
        (f"{_subject(comparison)}; memory in {unit}", _headline(trained[0], unit_bytes)),
        (f"memory, {unit}", _memory(unit_bytes)),
        ("a step's time, ms", _time()),
    ):
        console.print(_table(title, columns, trained))
        console.print()
    for setting in comparison.settings:
        for kind, words in (("did not train", setting.failure), ("note", setting.note)):
            if words:
                _wrapped(console, f"{setting.name}: {kind}: {words}", "yellow" if setting.failure else "")
    for note in comparison.context.notes:
        _wrapped(console, note)
    _wrapped(console, comparison.verdict, "bold")


def _subject(comparison: Comparison) -> str:
    context = comparison.context
    return f"{context.config_name}, {context.device}, {context.dtype}"


def _unit(settings: Sequence[TrainedSetting]) -> tuple[str, int]:
    largest = max(
        max(setting.peak.rss, setting.peak.allocated or 0, setting.peak.reserved or 0) for setting in settings
    )
    return ("GiB", GIB_BYTES) if largest >= GIB_FROM_BYTES else ("MiB", MIB_BYTES)


def _headline(base: TrainedSetting, unit_bytes: int) -> dict[str, Cell]:
    """base: what the others' savings and times are relative to."""
    return {
        "saved": lambda row: _bytes(row.saved.measured, unit_bytes),
        f"of\n{base.name}": lambda row: f"{row.saved.measured / (base.saved.measured or 1):.0%}",
        "peak\nallocated": lambda row: _bytes(row.peak.allocated, unit_bytes),
        "step ms": lambda row: _milliseconds(row.speed.step_seconds.median),
        f"times\n{base.name}": lambda row: f"{slowdown(row, base):.2f}",
        "tokens/s": lambda row: None if row.speed.tokens_per_s is None else f"{row.speed.tokens_per_s:,.0f}",
        "MFU": lambda row: _percent(row.speed.mfu),
        "HFU": lambda row: _percent(row.speed.hfu),
        "largest\nbatch": lambda row: None if row.largest_micro_batch is None else f"{row.largest_micro_batch:,}",
        "bits": _bits,
    }


def _memory(unit_bytes: int) -> dict[str, Cell]:
    return {
        "saved,\npredicted": lambda row: _bytes(row.saved.predicted, unit_bytes),
        "saved,\nmeasured": lambda row: _bytes(row.saved.measured, unit_bytes),
        "weights,\ngradients,\noptimizer": lambda row: _bytes(row.static.total, unit_bytes),
        "peak,\npredicted": lambda row: _bytes(row.predicted_peak_bytes, unit_bytes),
        "peak,\nallocated": lambda row: _bytes(row.peak.allocated, unit_bytes),
        "peak,\nreserved": lambda row: _bytes(row.peak.reserved, unit_bytes),
        "peak,\nresident": lambda row: _bytes(row.peak.rss, unit_bytes),
    }


def _time() -> dict[str, Cell]:
    return {
        "median": lambda row: _milliseconds(row.speed.step_seconds.median),
        "20 %": lambda row: _milliseconds(row.speed.step_seconds.q20),
        "80 %": lambda row: _milliseconds(row.speed.step_seconds.q80),
        "forward": lambda row: _milliseconds(row.speed.forward_seconds.median),
        "backward": lambda row: _milliseconds(row.speed.backward_seconds.median),
        "of it\nrecompute": lambda row: _milliseconds(row.speed.recompute_seconds),
        "optimizer": lambda row: _milliseconds(row.speed.optimizer_seconds.median),
    }


def _bits(row: TrainedSetting) -> str | None:
    if row.agreement is None:
        return None
    return "equal" if row.agreement.equal else "DIFFER"


def _table(title: str, columns: dict[str, Cell], settings: Sequence[TrainedSetting]) -> Table:
    table = Table(
        box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title=title, title_justify="left"
    )
    table.add_column("setting", vertical="bottom", overflow="fold")
    cells = {name: [cell(setting) for setting in settings] for name, cell in columns.items()}
    cells = {name: column for name, column in cells.items() if any(value is not None for value in column)}
    for name in cells:
        table.add_column(name, justify="right", vertical="bottom", no_wrap=True)
    for place, setting in enumerate(settings):
        row = [column[place] or UNKNOWN for column in cells.values()]
        table.add_row(Text(setting.name), *(Text(value, _style(value)) for value in row))
    return table


def _style(value: str) -> str:
    return {"equal": "green", "DIFFER": "bold white on red", UNKNOWN: "dim"}.get(value, "")


def _bytes(count: int | None, unit_bytes: int) -> str | None:
    """With three digits or more, however small."""
    if count is None:
        return None
    value = count / unit_bytes
    return f"{value:,.1f}" if value >= 10 else f"{value:#.3g}"


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1e3 * seconds:,.1f}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _wrapped(console: Console, text: str, style: str = "") -> None:
    for line in textwrap.wrap(text, console.width, break_long_words=False, break_on_hyphens=False):
        console.print(Text(line, style), soft_wrap=True)
