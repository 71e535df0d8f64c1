"""compare.html: a comparison as one page that opens offline, on a desktop and on a phone. Needs the extra `report`."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from plotly.offline import get_plotlyjs

from megaselect.comparison.result import Comparison, Context
from megaselect.errors import ComparisonError
from megaselect.report.compare_html_memory import sequence_figure, stacked_memory_figure, timeline_figure
from megaselect.report.compare_html_style import Figure
from megaselect.report.compare_html_table import details_table, headline_table
from megaselect.report.compare_html_training import loss_figure, throughput_figure, time_split_figure


def write_html(comparison: Comparison, path: Path) -> None:
    """Write the page. Raises ComparisonError where the file cannot be written."""
    try:
        path.write_text(make_html(comparison), encoding="utf-8")
    except OSError as error:
        raise ComparisonError(f"cannot write {path}: {error.strerror}; choose another --out") from error


def make_html(comparison: Comparison) -> str:
    """The page, with plotly.js, style and data in it."""
    context, figures = comparison.context, make_figures(comparison)
    title = f"{context.config_name}: recompute settings compared"
    plots = "\n".join(_figure(figure) for figure in figures)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("compare_page.css")}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
<p class="facts">{html.escape(_facts(context))}</p>
<p class="verdict{"" if _all_alike(comparison) else " differs"}">{html.escape(comparison.verdict)}</p>
{headline_table(comparison)}
{_notes(comparison)}
<section class="figures">
{plots}
</section>
<details>
<summary>All figures</summary>
{details_table(comparison)}
</details>
{_provenance(context)}
</main>
<script>{get_plotlyjs()}</script>
<script>
{_asset("compare_page.js")}</script>
</body>
</html>
"""


def make_figures(comparison: Comparison) -> list[Figure]:
    """Those that there is something to show in, in the order of the page."""
    trained = comparison.trained
    figures = [
        throughput_figure(trained),
        stacked_memory_figure(trained),
        timeline_figure(trained),
        sequence_figure(comparison.context, trained),
        time_split_figure(trained),
        loss_figure(trained),
    ]
    return [figure for figure in figures if figure is not None]


def _asset(name: str) -> str:
    return files("megaselect.report").joinpath(name).read_text(encoding="utf-8")


def _facts(context: Context) -> str:
    if own := context.model:
        layers = f"{own.layers} layers, " if own.layers else ""
        return (
            f"{own.kind}, {context.parameters:,} parameters ({layers}batch {own.batch}), {context.dtype} on "
            f"{context.device}"
        )
    model = context.config["model"]
    return (
        f"{context.parameters:,} parameters ({model['num_layers']} layers, hidden {model['hidden_size']}, sequence "
        f"{model['seq_length']:,}), {context.dtype} on {context.device}"
    )


def _all_alike(comparison: Comparison) -> bool:
    return all(
        setting.rounds_equal is not False and (setting.agreement is None or setting.agreement.equal)
        for setting in comparison.trained
    )


def _figure(figure: Figure) -> str:
    plot = figure.figure.to_plotly_json()
    data = {"data": plot["data"], "layout": plot["layout"], "pixels": figure.pixels}
    data["layout"].pop("template", None)
    text = json.dumps(data, allow_nan=False).replace("</", "<\\/")  # no name of a setting ends the script
    return f"""<section>
<h2>{html.escape(figure.title)}</h2>
<p class="caption">{html.escape(figure.caption)}</p>
<div class="plot" id="plot-{figure.key}" data-figure="data-{figure.key}" style="min-height: {figure.pixels}px"></div>
<script type="application/json" id="data-{figure.key}">{text}</script>
</section>"""


def _notes(comparison: Comparison) -> str:
    lines = [f"{setting.name}: {setting.note}" for setting in comparison.settings if setting.note]
    lines += comparison.context.notes
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{items}</ul>'


class _Fact(NamedTuple):
    label: str
    value: str
    is_code: bool = False


def _provenance(context: Context) -> str:
    """How it was measured."""
    warm_up = f"{context.warmup_steps} warm-up step{'' if context.warmup_steps == 1 else 's'}"
    facts = [
        _Fact("Command", context.command, True),
        _Fact(
            "Measured",
            f"{context.rounds} round{'' if context.rounds == 1 else 's'}, a fresh process for each setting and round, "
            f"each {warm_up} and {context.steps} timed steps from the same seed, over the same "
            f"{f'batch, with {context.model.optimizer}' if context.model else 'data'}; the order of the "
            "settings turns from round to round",
        ),
        _Fact("Device", f"{context.device}, {context.dtype}"),
        _Fact(
            "Versions",
            f"Megaselect {context.megaselect_version}, torch {context.torch_version}, Python {context.python_version}",
        ),
        _Fact("Commit", context.commit or "—", context.commit is not None),
        _Fact("Date", context.date),
    ]
    return f"<section><h2>How it was measured</h2><dl>{''.join(_rows(facts))}</dl></section>"


def _rows(facts: Sequence[_Fact]) -> list[str]:
    rows = []
    for fact in facts:
        value = html.escape(fact.value)
        rows.append(f"<dt>{fact.label}</dt><dd>{f'<code>{value}</code>' if fact.is_code else value}</dd>")
    return rows
