"""A ledger as a table: what backward needs, layer by layer, alike layers together."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from megaselect.ledger import Ledger, SavedRow
from megaselect.report.text import size

HELD_BY = {"autograd": "", "cache": "selective cache", "closure": "closure", "hook": "hook"}
RANGES_SHOWN = 3  # of layer numbers in a heading
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<first>\d+)(-(?P<last>\d+))?")  # layers.3, a chunk layers.0-1, blocks.3


class _Line(NamedTuple):
    name: str
    shape: str
    dtype: str
    bytes: int
    note: str


class _Group(NamedTuple):
    """Layers with the same lines, and how often each line occurs in one of them."""

    layers: list[str]
    lines: Counter[_Line]


def ledger_table(ledger: Ledger) -> Table:
    """A table for the console: bytes are those of one layer where a heading stands for several.

    First what is saved, which the total counts, then what checkpointed regions will make again.
    """
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("tensor", overflow="fold", min_width=20)
    table.add_column("shape", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("note", overflow="fold")
    _add_groups(table, ledger.rows, "saved")
    _add_groups(table, ledger.recomputed, "recomputed")
    _add_total(table, "saved in all", ledger.total)
    if ledger.recomputed:
        _add_total(table, "recomputed in all", ledger.recomputed_total)
    return table


def _add_groups(table: Table, rows: list[SavedRow], status: str) -> None:
    for layers, lines in _groups(rows):
        note = f"{status}, each" if len(layers) > 1 else status
        total = sum(line.bytes * count for line, count in lines.items())
        table.add_row(Text(_title(layers)), "", "", f"{total:,}", note, style="bold")
        for line, count in lines.items():
            note = ", ".join(filter(None, (f"{count} tensors" if count > 1 else "", line.note)))
            table.add_row(Text(f"  {line.name}"), line.shape, line.dtype, f"{line.bytes * count:,}", note)
        table.add_section()


def _add_total(table: Table, label: str, count: int) -> None:
    table.add_row(label, "", "", f"{count:,}", size(count), style="bold")


def _groups(rows: list[SavedRow]) -> list[_Group]:
    """In the order of the forward pass, what lies outside the layers last."""
    lines_of: dict[str, Counter[_Line]] = {}
    for row in rows:
        lines_of.setdefault(row.layer, Counter())[_line(row)] += 1
    outside = lines_of.pop("", None)
    groups: dict[tuple[str, frozenset[tuple[_Line, int]]], _Group] = {}
    for layer, lines in lines_of.items():
        group = groups.setdefault((_stem(layer), frozenset(lines.items())), _Group([], lines))
        group.layers.append(layer)
    return [*groups.values(), *([_Group([""], outside)] if outside else [])]


def _stem(layer: str) -> str:
    numbered = _NUMBERED.fullmatch(layer)
    return numbered["stem"] if numbered else layer


def _title(layers: list[str]) -> str:
    """layers.0-3 (4x); layers.0-3 (2 chunks)"""
    if len(layers) == 1:
        return layers[0] or "outside the layers"
    ranges: list[list[int]] = []
    for numbered in filter(None, map(_NUMBERED.fullmatch, layers)):
        first = int(numbered["first"])
        if ranges and ranges[-1][1] + 1 == first:
            ranges[-1][1] = int(numbered["last"] or first)
        else:
            ranges.append([first, int(numbered["last"] or first)])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:RANGES_SHOWN]]
    more = ["…"] if len(ranges) > RANGES_SHOWN else []
    times = f"{len(layers)} chunks" if numbered["last"] else f"{len(layers)}x"
    return f"{numbered['stem']}{','.join([*shown, *more])} ({times})"


def _line(row: SavedRow) -> _Line:
    dtype = str(row.dtype).removeprefix("torch.")
    return _Line(row.name, "x".join(map(str, row.shape)) or "scalar", dtype, row.bytes, _note(row))


def _note(row: SavedRow) -> str:
    notes = [HELD_BY[row.held_by]]
    if row.view_bytes < row.bytes:
        notes.append(f"view, pins {row.bytes / row.view_bytes:.3g}x")
    elif row.views > 1 and math.prod(row.shape) * row.dtype.itemsize < row.bytes:
        notes.append(f"{row.views} views of one")
    return ", ".join(filter(None, notes))
