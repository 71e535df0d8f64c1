"""What a report on the console begins with."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_head(console: Console, title: str, facts: Iterable[tuple[str, str]]) -> None:
    """The title, and under it facts: (label, value)."""
    console.print(Text(title, "bold"))
    grid = Table.grid(padding=(0, 2))
    for label, value in facts:
        grid.add_row(f"  {label}", Text(value, overflow="fold"))
    console.print(grid)
    console.print()
