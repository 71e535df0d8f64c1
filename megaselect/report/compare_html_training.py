"""The figures of compare.html that are about speed and loss."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import plotly.graph_objects as go

from megaselect.comparison.result import TrainedSetting
from megaselect.report.compare_html_groups import allocated_peaks
from megaselect.report.compare_html_style import (
    MARKER_PIXELS,
    Figure,
    add_bars,
    bar_pixels,
    colours,
    dash,
    lay_bars,
    none_of,
    symbol,
    unit_of,
)
from megaselect.units import size

PHASE_COLOURS = {"forward": "#0072b2", "backward": "#56b4e9", "recompute": "#d55e00", "optimizer": "#009e73"}
REST_COLOUR = "#9a9a9a"


def throughput_figure(settings: Sequence[TrainedSetting]) -> Figure:
    """A point a setting: tokens a second, or steps where batches are not of tokens."""
    has_tokens = all(setting.speed.tokens_per_s is not None for setting in settings)
    counted, number = ("tokens", ",.0f") if has_tokens else ("steps", ",.4g")
    peaks, what = _peaks(settings)
    unit, unit_bytes = unit_of(max(peaks))
    figure = go.Figure()
    paints = colours(settings)
    for setting, peak in zip(settings, peaks, strict=True):
        step = setting.speed.step_seconds
        rate = setting.speed.tokens_per_s or 1 / step.median
        a_step = rate * step.median
        text = f"<b>{setting.name}</b><br>{size(peak)}<br>{rate:{number}} {counted}/s<extra></extra>"
        figure.add_scatter(
            name=setting.name,
            x=[rate],
            y=[peak / unit_bytes],
            error_x={
                "array": [a_step / step.q20 - rate],
                "arrayminus": [rate - a_step / step.q80],
                "thickness": 1,
            },
            mode="markers",
            marker={"size": MARKER_PIXELS, "color": paints[setting.name], "symbol": symbol(setting)},
            hovertemplate=text,
        )
    figure.update_layout(
        xaxis={"title": {"text": f"{counted} per second"}, "tickformat": ",d" if has_tokens else "~g"},
        yaxis={"title": {"text": f"{what}, {unit}"}, "rangemode": "tozero"},
    )
    caption = (
        f"Right is faster, down is smaller. Bars span the 20 and 80 % quantiles of the steps; memory is the {what}."
    )
    return Figure("throughput", "Memory against throughput", caption, figure)


def _peaks(settings: Sequence[TrainedSetting]) -> tuple[list[int], str]:
    """A peak for each setting, of one kind for all, and what it is called."""
    if peaks := allocated_peaks(settings):
        return peaks, "peak allocated"
    return [setting.peak.rss for setting in settings], "peak resident size"


def time_split_figure(settings: Sequence[TrainedSetting]) -> Figure:
    """Bars of a step's phases."""
    names = [setting.name for setting in settings]
    parts = [_phases(setting) for setting in settings]
    figure = go.Figure()
    for phase, colour in (PHASE_COLOURS | {"rest": REST_COLOUR}).items():
        values = [1e3 * part[phase] for part in parts]
        add_bars(
            figure, phase, colour, names, [max(value, 0) for value in values], [f"{value:,.1f} ms" for value in values]
        )
    lay_bars(figure, "milliseconds a step")
    caption = (
        f"Medians of the timed steps. Recompute is what backward takes longer than that of {none_of(settings)}; where "
        "noise makes it negative, it is drawn as 0."
    )
    return Figure("time", "Where a step's time goes", caption, figure, bar_pixels(names))


def _phases(setting: TrainedSetting) -> dict[str, float]:
    speed = setting.speed
    recompute = speed.recompute_seconds or 0.0
    forward, backward, optimizer = (
        spread.median for spread in (speed.forward_seconds, speed.backward_seconds, speed.optimizer_seconds)
    )
    return {
        "forward": forward,
        "backward": backward - max(recompute, 0.0),
        "recompute": recompute,
        "optimizer": optimizer,
        "rest": speed.step_seconds.median - forward - backward - optimizer,
    }


def loss_figure(settings: Sequence[TrainedSetting]) -> Figure:
    """Losses above, differences to none below, on one axis of steps."""
    figure, paints = go.Figure(), colours(settings)
    widths = [max(7 - 0.8 * place, 1.5) for place in range(len(settings))]
    for setting, width in zip(settings, widths, strict=True):
        line = {"color": paints[setting.name], "dash": dash(setting)}
        steps = list(range(1, len(setting.losses) + 1))
        hover = f"<b>{setting.name}</b><br>step %{{x}}: %{{y:.6f}}<extra></extra>"
        shared = {"name": setting.name, "legendgroup": setting.name, "x": steps, "mode": "lines"}
        figure.add_scatter(**shared, y=setting.losses, line={**line, "width": width}, hovertemplate=hover)
        if setting.agreement is not None:
            differences = setting.agreement.loss_differences
            hover = (
                f"<b>{setting.name}</b> minus {setting.agreement.reference}<br>step %{{x}}: %{{y:.3g}}<extra></extra>"
            )
            figure.add_scatter(
                **shared,
                y=differences,
                line={**line, "width": width},
                yaxis="y2",
                showlegend=False,
                hovertemplate=hover,
            )
    figure.update_layout(
        xaxis={"title": {"text": "step"}, "anchor": "y2", "tickformat": "d", "tickvals": _step_ticks(settings)},
        yaxis={"title": {"text": "loss"}, "domain": [0.42, 1.0]},
        yaxis2={"title": {"text": "minus none"}, "domain": [0.0, 0.27], **_difference_range(settings)},
    )
    caption = (
        "Above: every setting's loss; where lines fall together, each is drawn thinner than the one below it. "
        f"Below: the loss minus that of {none_of(settings)}, step by step."
    )
    return Figure("loss", "Loss, and its difference to none", caption, figure, 440)


def _step_ticks(settings: Sequence[TrainedSetting]) -> list[int]:
    """The first step, and multiples of 1, 2 or 5 times a power of ten: eight at most, which a phone has room for."""
    last = max(len(setting.losses) for setting in settings)
    apart = next(size for power in count() for size in (10**power, 2 * 10**power, 5 * 10**power) if last // size < 8)
    return [1, *range(apart if apart > 1 else 2, last + 1, apart)]


def _difference_range(settings: Sequence[TrainedSetting]) -> dict[str, object]:
    """An axis that shows exact zeros as a line in the middle, and says so."""
    differences = [value for setting in settings if setting.agreement for value in setting.agreement.loss_differences]
    if any(value is None or value != 0 for value in differences):
        return {"tickformat": ".1e", "nticks": 4}
    return {"range": [-1, 1], "tickvals": [0], "ticktext": ["exactly 0"]}
