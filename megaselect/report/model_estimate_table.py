"""The estimate of a model of anybody's on the console: one line a setting. 80 columns suffice."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from megaselect.estimation.any_model import ModelEstimate, SettingEstimate
from megaselect.report.head import print_head
from megaselect.report.ledger_table import ledger_table
from megaselect.units import GIB_BYTES, MIB_BYTES, size

UNKNOWN = "–"
_LEGEND = (
    "saved: for backward, by one forward pass of the batch. layer: the fullest one. in all: with weights, gradients "
    "and optimizer; backward's own working memory comes to it."
)


def print_model_estimate(estimate: ModelEstimate, console: Console, rows_of: str | None = None) -> None:
    """Header, settings, and where it is asked for what the setting `rows_of` saves, tensor by tensor."""
    measured = [row.setting for row in estimate.rows if row.is_measured]
    said = f"{', '.join(measured)} measured" if measured else "predicted, nothing was run"
    print_head(console, f"megaselect estimate {estimate.name}: {said}", _facts(estimate))
    console.print(_settings_table(estimate))
    console.print()
    if rows_of is not None and (ledger := estimate.row(rows_of).ledger):
        console.print(ledger_table(ledger))
        console.print()
    for note in [_LEGEND, *_reasons(estimate), *estimate.notes]:
        console.print(Text(note, "dim"))


def _facts(estimate: ModelEstimate) -> list[tuple[str, str]]:
    static = estimate.static
    frozen = estimate.parameters - estimate.trainable_parameters
    master = f", master weights {size(static.master_weights)}" if static.master_weights else ""
    layers = f", {estimate.layers} layers" if estimate.layers else ""
    return [
        ("model", f"{estimate.model}{layers}"),
        ("batch", estimate.batch),
        ("parameters", f"{estimate.parameters:,}" + (f", {frozen:,} of them frozen" if frozen else "")),
        ("held always", f"weights {size(static.weights)}, gradients {size(static.gradients)}{master}, "
                        f"optimizer {size(static.optimizer)}"),
    ]  # fmt: skip


def _settings_table(estimate: ModelEstimate) -> Table:
    known = [row.ledger.total for row in estimate.rows if row.ledger]
    largest = max(known, default=0) + estimate.static.total
    unit, unit_bytes = ("GiB", GIB_BYTES) if largest >= GIB_BYTES else ("MiB", MIB_BYTES)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(f"bytes in {unit}", no_wrap=True)
    for name in ("layer", "outside layers", "saved", "of none", "in all"):
        table.add_column(name, justify="right", no_wrap=True)
    base = estimate.rows[0].ledger
    for row in estimate.rows:
        table.add_row(row.setting, *_cells(row, estimate, base.total if base else 0, unit_bytes))
    return table


def _cells(row: SettingEstimate, estimate: ModelEstimate, base: int, unit_bytes: int) -> list[str]:
    if row.ledger is None:
        return [UNKNOWN] * 5
    return [
        _count(row.per_layer / unit_bytes) if estimate.layers else UNKNOWN,
        _count(row.outside / unit_bytes),
        _count(row.ledger.total / unit_bytes),
        f"{row.ledger.total / base:.0%}" if base else UNKNOWN,
        _count((row.ledger.total + estimate.static.total) / unit_bytes),
    ]


def _reasons(estimate: ModelEstimate) -> list[str]:
    """Why a figure is missing, once for settings that share it."""
    settings: dict[str, list[str]] = {}
    for row in estimate.rows:
        if row.ledger is None:
            settings.setdefault(row.reason, []).append(row.setting)
    return [
        f"{', '.join(names)}: not predicted, since the model does not run without values ({reason}); --measure runs "
        "one forward pass with them."
        for reason, names in settings.items()
    ]


def _count(value: float) -> str:
    """With three digits or more, however small."""
    return f"{value:,.2f}" if value >= 1 else f"{value:#.3g}"
