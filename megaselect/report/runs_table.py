"""The table of `megaselect runs`."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Callable, Sequence

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from megaselect.report.run_list import ListedRun

UNKNOWN = "-"
STYLES = {"running": "green", "starting": "green", "failed": "bold red", "killed": "bold red", "stopped": "yellow"}
_JUSTIFIED: dict[str, JustifyMethod] = {"state": "left", "setting": "left", "ranks": "left"}
_TO_GO = ("best valid", "changed")  # where there is no room beside the whole names
_SHORTEST_NAME, _LONGEST_REMARK, _LONGEST_RANKS = 12, 200, 20  # columns

Cell = Callable[[ListedRun], str]


def print_runs(runs: Sequence[ListedRun], console: Console, now: float) -> None:
    """Print the table, which leaves columns out where the console is narrow, and what is wrong below it. Ranks have a
    column where a run was on several.

    now: Unix time in seconds that ages are taken from.
    """
    names = _short_names([run.path for run in runs])
    cells = {title: [title, *map(cell, runs)] for title, cell in _columns(now).items()}
    if {_ranks(run) for run in runs} <= {UNKNOWN, "1"}:
        del cells["ranks"]
    widths = {title: 1 + max(map(len, column)) for title, column in cells.items()}
    longest = max(map(len, names))
    for title in _TO_GO:
        if sum(widths.values()) + longest > console.width:
            del widths[title]
    if "ranks" in widths and sum(widths.values()) + min(longest, _SHORTEST_NAME) > console.width:
        del widths["ranks"]
    room = max(console.width - sum(widths.values()), _SHORTEST_NAME)
    table = Table(box=None, pad_edge=False, padding=(0, 0, 0, 1), header_style="bold")
    table.add_column("run", no_wrap=True)
    for title, width in widths.items():
        table.add_column(title, justify=_JUSTIFIED.get(title, "right"), no_wrap=True, min_width=width - 1)
    for place, (name, run) in enumerate(zip(names, runs, strict=True), 1):
        texts = (Text(cells[title][place], _style(title, run)) for title in widths)
        table.add_row(Text(_shortened(name, room)), *texts)
    console.print(table)
    for name, run in zip(names, runs, strict=True):
        for line in _remarks(run):
            remark = textwrap.shorten(f"{name}: {line}", _LONGEST_REMARK, placeholder=" ...")
            wrapped = textwrap.wrap(remark, console.width, subsequent_indent="  ", break_on_hyphens=False)
            for part in wrapped:
                console.print(Text(part), soft_wrap=True)


def ago(seconds: float) -> str:
    """`5 s ago`, `3 min ago`, `7 h ago`, `2 d ago`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(int(seconds), 0)} s ago"


def _columns(now: float) -> dict[str, Cell]:
    """In the order in which they stand."""
    return {
        "state": lambda run: run.state,
        "step": lambda run: f"{_count(run.step)}/{_count(run.max_steps)}",
        "loss": lambda run: _loss(run.loss),
        "best valid": lambda run: _loss(run.best_valid_loss),
        "setting": _setting,
        "ranks": _ranks,
        "tokens/s": lambda run: UNKNOWN if run.tokens_per_s is None else f"{run.tokens_per_s:,.0f}",
        "changed": lambda run: ago(now - run.changed),
    }


def _shortened(name: str, columns: int) -> str:
    """Without its middle, where it is too long: a run's name often ends in what makes it different."""
    if len(name) <= columns:
        return name
    tail = (columns - 1) // 2
    return f"{name[: columns - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def _short_names(paths: Sequence[str]) -> list[str]:
    """Without the directories that all of them share."""
    if len({os.path.isabs(path) for path in paths}) > 1:
        return list(paths)
    shared = os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, shared) if shared else path for path in paths]


def _remarks(run: ListedRun) -> list[str]:
    failed = [f"failed: {run.reason}"] if run.state == "failed" and run.reason else []
    return [*failed, *run.problems]


def _setting(run: ListedRun) -> str:
    return f"{run.setting or UNKNOWN}{', compiled' if run.compiled else ''}"


def _ranks(run: ListedRun) -> str:
    """`4 parameters`: four ranks that share them; `2x2 parameters`: two groups of two ranks that do."""
    layout = run.layout or {}
    ranks, replicas, sharding = (layout.get(name) for name in ("ranks", "replicas", "sharding"))
    if type(ranks) is not int or type(replicas) is not int or replicas < 1:
        return UNKNOWN
    if ranks == 1:
        return "1"
    groups = f"{replicas}x{ranks // replicas}" if sharding != "none" and replicas > 1 else str(ranks)
    return f"{groups} {sharding}"[:_LONGEST_RANKS]


def _style(title: str, run: ListedRun) -> str:
    return STYLES.get(run.state, "") if title == "state" else ""


def _count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _loss(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.3g}"
