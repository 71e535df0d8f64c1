"""The figures of compare.html that are about memory."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from megaselect.comparison.result import Context, TrainedSetting
from megaselect.report.compare_html_groups import (
    GROUP_COLOURS,
    allocated_peaks,
    saved_by_sequence,
    saved_groups,
    sequence_lengths,
    static_groups,
)
from megaselect.report.compare_html_style import (
    Figure,
    add_bars,
    bar_pixels,
    batch_name,
    colours,
    dash,
    lay_bars,
    symbol,
    unit_of,
)
from megaselect.units import GIB_BYTES, size


def stacked_memory_figure(settings: Sequence[TrainedSetting]) -> Figure:
    """Bars of what is held, by kind, with the measured peak."""
    unit, unit_bytes = unit_of(max(setting.static.total + setting.saved.measured for setting in settings))
    names = [setting.name for setting in settings]
    stacks = [static_groups(setting) | saved_groups(setting) for setting in settings]
    figure = go.Figure()
    for group, colour in _group_colours(stacks).items():
        sizes = [stack.get(group, 0) for stack in stacks]
        add_bars(
            figure, group, colour, names, [count / unit_bytes for count in sizes], [size(count) for count in sizes]
        )
    if peaks := allocated_peaks(settings):
        figure.add_scatter(
            name="peak allocated, measured",
            y=names,
            x=[peak / unit_bytes for peak in peaks],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 18, "line": {"width": 3}},
            customdata=[size(peak) for peak in peaks],
            hovertemplate="<b>%{y}</b><br>peak allocated: %{customdata}<extra></extra>",
            meta="ink",
        )
    lay_bars(figure, f"memory, {unit}")
    caption = (
        f"What training holds whatever it recomputes, and what one {batch_name(settings)} saves for backward, by kind "
        "of tensor. Not all of it is there at the same time: the measured peak may lie below the sum, or above it."
    )
    return Figure("memory", "What the memory is", caption, figure, bar_pixels(names))


def _group_colours(stacks: Sequence[dict[str, int]]) -> dict[str, str]:
    present = {group for stack in stacks for group, count in stack.items() if count}
    return {group: colour for group, colour in GROUP_COLOURS.items() if group in present}


def timeline_figure(settings: Sequence[TrainedSetting]) -> Figure | None:
    """What is held from the start to the end of a step, where that was followed."""
    followed = [setting for setting in settings if setting.timeline]
    if not followed:
        return None
    unit, unit_bytes = unit_of(max(point.bytes for setting in followed for point in setting.timeline))
    figure, paints = go.Figure(), colours(settings)
    for setting in followed:
        length = setting.timeline[-1].seconds or 1.0
        figure.add_scatter(
            name=setting.name,
            x=[100 * point.seconds / length for point in setting.timeline],
            y=[point.bytes / unit_bytes for point in setting.timeline],
            mode="lines",
            line={"color": paints[setting.name], "dash": dash(setting), "width": 1.8},
            hovertemplate=f"<b>{setting.name}</b><br>%{{y:.2f}} {unit}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": {"text": "share of the step's time"}, "ticksuffix": " %"},
        yaxis={"title": {"text": f"tensors held, {unit}"}, "rangemode": "tozero"},
    )
    caption = (
        "One step after the timed ones: the slope up is forward, which keeps, the slope down is backward, which frees. "
        "Spikes on the way down are layers that are computed again."
    )
    return Figure("timeline", "Memory in the course of a step", caption, figure, 380)


def sequence_figure(context: Context, settings: Sequence[TrainedSetting]) -> Figure | None:
    """Predicted bytes, both axes logarithmic. auto is left out: it would plan anew at every length.

    None for a model of anybody's, whose bytes have no formula.
    """
    if context.model is not None:
        return None
    figure, paints = go.Figure(), colours(settings)
    lengths = sequence_lengths(context)
    for setting in (setting for setting in settings if setting.recompute["mode"] != "auto"):
        sizes = saved_by_sequence(context, setting, lengths)
        figure.add_scatter(
            name=setting.name,
            x=lengths,
            y=[count / GIB_BYTES for count in sizes],
            mode="lines+markers",
            line={"color": paints[setting.name], "dash": dash(setting), "width": 2},
            marker={"symbol": symbol(setting), "size": 6},
            customdata=[size(count) for count in sizes],
            hovertemplate=f"<b>{setting.name}</b><br>sequence %{{x:,}}: %{{customdata}}<extra></extra>",
        )
    figure.update_layout(
        xaxis={
            "title": {"text": "sequence length"},
            "type": "log",
            "tickvals": lengths[::2],
            "ticktext": [f"{length:,}" for length in lengths[::2]],
        },
        yaxis={"title": {"text": "saved for backward, GiB"}, "type": "log", "dtick": 1, "tickformat": "~g"},
    )
    caption = (
        f"Predicted, not measured: what one micro-batch of {context.config['training']['micro_batch_size']} would keep "
        "for backward with this model at other sequence lengths, by the formulas of the predicted bytes above."
    )
    return Figure("sequence", "Memory against sequence length (predicted)", caption, figure, 400)
