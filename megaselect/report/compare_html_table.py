"""The headline table of compare.html."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

from megaselect.comparison.result import Comparison, FailedSetting, SettingResult, TrainedSetting
from megaselect.comparison.step_times import slowdown
from megaselect.report.compare_html_style import colours, symbol
from megaselect.units import size

UNKNOWN = "—"
_SWATCHES = {
    "circle": '<circle cx="6" cy="6" r="6"/>',
    "square": '<rect width="12" height="12"/>',
    "diamond": '<path d="M6 0 12 6 6 12 0 6z"/>',
}


class Column(NamedTuple):
    """unit: the second line of the head. cell: html of a value; share: part of the cell that is filled, 0 to 1."""

    head: str
    unit: str
    cell: Callable[[TrainedSetting], str | None]
    share: Callable[[TrainedSetting], float] | None = None


def headline_table(comparison: Comparison) -> str:
    """A row a setting, with what one chooses by; where a setting did not train, why."""
    return _table(comparison, _headline(comparison.trained))


def details_table(comparison: Comparison) -> str:
    """Every other figure of each setting that trained."""
    return _table(dataclasses.replace(comparison, settings=tuple(comparison.trained)), DETAILS)


def _table(comparison: Comparison, columns: Sequence[Column]) -> str:
    """Columns of which nothing is known are left out; a value that is not known is a dash."""
    columns = [column for column in columns if any(column.cell(setting) for setting in comparison.trained)]
    heads = "".join(f"<th>{column.head}<small>{column.unit}</small></th>" for column in columns)
    paints = colours(comparison.settings)
    rows = "\n".join(_row(setting, paints[setting.name], columns) for setting in comparison.settings)
    return f"""<div class="scroll" tabindex="0"><table>
<thead><tr><th>setting<small>&nbsp;</small></th>{heads}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _headline(trained: Sequence[TrainedSetting]) -> list[Column]:
    base = trained[0]
    name = html.escape(base.name)
    most = max(setting.saved.measured for setting in trained) or 1  # a model may have nothing to save
    slowest = max(setting.speed.step_seconds.median for setting in trained)
    return [
        Column("saved", "for backward", lambda row: size(row.saved.measured), lambda row: row.saved.measured / most),
        Column("saved", f"of {name}", lambda row: f"{row.saved.measured / (base.saved.measured or 1):.0%}"),
        Column("peak", "allocated", lambda row: _size(row.peak.allocated)),
        Column("step", "median (20–80 %)", _step, lambda row: row.speed.step_seconds.median / slowest),
        Column(
            "step",
            f"× {name}",
            lambda row: f"{slowdown(row, base):.2f}",
        ),
        Column("tokens/s", "&nbsp;", lambda row: _count(row.speed.tokens_per_s)),
        Column("MFU", "&nbsp;", lambda row: _percent(row.speed.mfu)),
        Column("HFU", "&nbsp;", lambda row: _percent(row.speed.hfu)),
        Column("largest", "micro-batch", lambda row: _count(row.largest_micro_batch)),
        Column("bits", "against none", _bits),
    ]


def _row(setting: SettingResult, paint: str, columns: Sequence[Column]) -> str:
    swatch = f'<svg class="swatch" viewBox="0 0 12 12" fill="{paint}">{_SWATCHES[symbol(setting)]}</svg>'
    head = f'<th scope="row"><span class="name">{swatch}{html.escape(setting.name)}</span></th>'
    if isinstance(setting, FailedSetting):
        reason = html.escape(setting.failure)
        return f'<tr>{head}<td class="failed" colspan="{len(columns)}">did not train: {reason}</td></tr>'
    return f"<tr>{head}{''.join(_cell(setting, column) for column in columns)}</tr>"


def _cell(setting: TrainedSetting, column: Column) -> str:
    value = column.cell(setting) or UNKNOWN
    if column.share is None:
        return f"<td>{value}</td>"
    return f'<td class="share" style="--share: {100 * column.share(setting):.1f}%">{value}</td>'


def _measured(row: TrainedSetting) -> str:
    if row.saved.predicted is None:
        return size(row.saved.measured)
    difference = row.saved.measured - row.saved.predicted
    if not difference:
        return '<span class="equal">equal to the byte</span>'
    return f'<span class="differ">{row.saved.measured:,} ({difference:+,})</span>'


def _bits(row: TrainedSetting) -> str | None:
    if row.agreement is None:
        return None
    if row.agreement.equal:
        return '<span class="equal">equal</span>'
    step = row.agreement.first_different_step
    return f'<span class="differ">differ{"" if step is None else f" from step {step}"}</span>'


def _step(row: TrainedSetting) -> str:
    step = row.speed.step_seconds
    return f"{1e3 * step.median:,.1f} ms ({1e3 * step.q20:,.0f}–{1e3 * step.q80:,.0f})"


def _size(count: int | None) -> str | None:
    return None if count is None else size(count)


def _milliseconds(seconds: float | None) -> str | None:
    return None if seconds is None else f"{1e3 * seconds:,.1f}".replace("-", "−")


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _count(count: float | None) -> str | None:
    return None if count is None else f"{count:,.0f}"


def _tera(flops: int | None) -> str | None:
    return None if flops is None else f"{flops / 1e12:,.4g}"


DETAILS = (
    Column("saved", "predicted", lambda row: _size(row.saved.predicted)),
    Column("saved", "measured", _measured),
    Column("parameters", "&nbsp;", lambda row: _size(row.static.weights)),
    Column("gradients", "&nbsp;", lambda row: _size(row.static.gradients)),
    Column("master", "weights", lambda row: _size(row.static.master_weights) if row.static.master_weights else None),
    Column("optimizer", "&nbsp;", lambda row: _size(row.static.optimizer)),
    Column("peak", "predicted", lambda row: _size(row.predicted_peak_bytes)),
    Column("peak", "allocated", lambda row: _size(row.peak.allocated)),
    Column("peak", "reserved", lambda row: _size(row.peak.reserved)),
    Column("peak", "resident", lambda row: _size(row.peak.rss)),
    Column("forward", "ms", lambda row: _milliseconds(row.speed.forward_seconds.median)),
    Column("backward", "ms", lambda row: _milliseconds(row.speed.backward_seconds.median)),
    Column("recompute", "of backward, ms", lambda row: _milliseconds(row.speed.recompute_seconds)),
    Column("optimizer", "ms", lambda row: _milliseconds(row.speed.optimizer_seconds.median)),
    Column("model", "TFLOPs a step", lambda row: _tera(row.model_flops)),
    Column("hardware", "TFLOPs a step", lambda row: _tera(row.hardware_flops)),
)
