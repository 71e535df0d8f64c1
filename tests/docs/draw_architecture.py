"""Draws docs/images/architecture.svg: `python tests/docs/draw_architecture.py > docs/images/architecture.svg`.

Layers are those of the contract in pyproject.toml, a package's words the first sentence of its docstring. Written by
hand, so that it is the same text wherever it is drawn.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WIDTH, BOX, GAP, TOP = 860, 34, 8, 58
BOLD_WIDTH, PLAIN_WIDTH = 8.6, 7.4  # of a letter, at most
PLAIN = {"kernels": "fused operators: Triton, and its fallback in plain torch"}  # a folder without a docstring
HIDDEN = {"__main__"}


def contracts() -> dict[str, dict]:
    """The import contracts, by name."""
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["name"]: contract for contract in tables["tool"]["importlinter"]["contracts"]}


def layers() -> list[list[str]]:
    """Packages that may not import each other share a layer; the highest comes first."""
    rows = [re.split(r" \| ", row) for row in contracts()["Packages import one way"]["layers"]]
    return [row for row in rows if not HIDDEN & set(row)]


def words_of(package: str) -> str:
    """The first sentence of a package's docstring, or a module's."""
    if package in PLAIN:
        return PLAIN[package]
    home = ROOT / "megaselect" / package
    path = home / "__init__.py" if home.is_dir() else home.with_suffix(".py")
    lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
    return re.split(r"(?<=\w)[.:](?: |$)", lines[0])[0]


def draw() -> str:
    """The whole file."""
    rows = layers()
    height = TOP + len(rows) * (BOX + GAP) + 8
    title = "What imports what in megaselect/: a package may import those below it"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="30" font-size="16" font-weight="600">{escape(title)}</text>',
    ]
    for number, row in enumerate(rows):
        lines += _row(row, TOP + number * (BOX + GAP))
    return "\n".join([*lines, "</svg>", ""])


def _row(packages: list[str], y: int) -> list[str]:
    """Boxes of equal widths with words in them; of many, names alone, as wide as these ask."""
    space = WIDTH - 32 - GAP * (len(packages) - 1)
    with_words = len(packages) <= 2
    shares = [1 if with_words else len(package) + 4 for package in packages]
    lines, x = [], 16.0
    for package, share in zip(packages, shares, strict=True):
        width = space * share / sum(shares)
        size = f'x="{x:g}" y="{y}" width="{width:g}" height="{BOX}"'
        lines.append(f'<rect {size} rx="4" fill="#dbe9f6" stroke="#5b7fa6"/>')
        label = f'<tspan font-weight="600">{escape(package)}</tspan>'
        if with_words:
            fitting = int((width - 30 - BOLD_WIDTH * len(package)) / PLAIN_WIDTH)
            words = textwrap.shorten(words_of(package), fitting, placeholder=" …")
            label += f'<tspan fill="#444444">  {escape(words)}</tspan>'
        lines.append(f'<text x="{x + 8:g}" y="{y + 22}" xml:space="preserve">{label}</text>')
        x += width + GAP
    return lines


if __name__ == "__main__":
    sys.stdout.write(draw())
