"""What the figures of compare.html share: colours, symbols, units, stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from megaselect.comparison.model_rows import PEERS
from megaselect.comparison.result import SettingResult
from megaselect.units import GIB_BYTES, MIB_BYTES

# Okabe and Ito's palette, which people with any kind of colour vision tell apart. It starts with the modes that
# every comparison has, so that they keep their colours from page to page.
MODE_COLOURS = {"none": "#7f7f7f", "selective": "#56b4e9", "all": "#009e73", "full": "#d55e00"}
OTHER_COLOURS = ("#0072b2", "#cc79a7", "#e69f00", "#b8a800")
MODEL_COLOURS = dict(zip(("attention", *PEERS), OTHER_COLOURS, strict=True))  # of models of anybody's
SYMBOLS = {"unfused": "circle", "fused": "square", "sdpa": "diamond"}
DASHES = {"unfused": "solid", "fused": "dash", "sdpa": "dot"}
# Of a model of anybody's, settings have the looks of the first attention, and peers those of the last.
SETTINGS_LOOK, PEERS_LOOK = "unfused", "sdpa"
MARKER_PIXELS = 13


class Figure(NamedTuple):
    """key: id in the page. caption: what to read in it. pixels: height without the legend."""

    key: str
    title: str
    caption: str
    figure: go.Figure
    pixels: int = 360


def colours(settings: Sequence[SettingResult]) -> dict[str, str]:
    """Setting -> colour: that of its mode, whichever attention it goes with."""
    others: dict[str, str] = {}
    result = {}
    for setting in settings:
        mode = setting.name.removeprefix(f"{setting.attention} ")
        known = MODE_COLOURS if setting.attention else MODE_COLOURS | MODEL_COLOURS
        if mode not in known:
            others.setdefault(mode, OTHER_COLOURS[len(others) % len(OTHER_COLOURS)])
        result[setting.name] = known.get(mode) or others[mode]
    return result


def symbol(setting: SettingResult) -> str:
    """Of its points, by its attention."""
    return SYMBOLS[_look(setting)]


def dash(setting: SettingResult) -> str:
    """Of its lines, by its attention."""
    return DASHES[_look(setting)]


def _look(setting: SettingResult) -> str:
    return setting.attention or (PEERS_LOOK if setting.is_peer else SETTINGS_LOOK)


def none_of(settings: Sequence[SettingResult]) -> str:
    """The setting that others are held against, in words."""
    return "none with the same attention" if settings[0].attention else "none"


def batch_name(settings: Sequence[SettingResult]) -> str:
    """What a forward pass takes, in words: a step of a model of anybody's has one."""
    return "micro-batch" if settings[0].attention else "batch"


def unit_of(largest: int) -> tuple[str, int]:
    """(name, bytes) of the unit for an axis that reaches `largest` bytes."""
    return ("GiB", GIB_BYTES) if largest >= GIB_BYTES else ("MiB", MIB_BYTES)


def add_bars(
    figure: go.Figure, name: str, colour: str, rows: list[str], values: list[float], texts: list[str]
) -> None:  # fmt: skip
    """One part of a stacked bar in each row. texts: what the pointer shows of it."""
    figure.add_bar(
        name=name,
        orientation="h",
        y=rows,
        x=values,
        marker={"color": colour, "line": {"width": 0}},
        customdata=texts,
        hovertemplate=f"<b>%{{y}}</b><br>{name}: %{{customdata}}<extra></extra>",
    )


def lay_bars(figure: go.Figure, title: str) -> None:
    """Stack the bars, the first row on top. title: of the axis."""
    figure.update_layout(
        barmode="stack",
        bargap=0.35,
        xaxis={"title": {"text": title}, "rangemode": "tozero", "tickformat": ","},
        yaxis={"autorange": "reversed", "automargin": True, "ticksuffix": "  ", "showgrid": False},
    )


def bar_pixels(names: Sequence[str]) -> int:
    """Height of a figure with a bar a name."""
    return 70 + 36 * len(names)
