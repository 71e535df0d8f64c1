"""A figure of what a layer keeps with each setting, as SVG: `python -m megaselect.report.kept_bytes_svg YAML > FILE`.

Bars are predicted (megaselect/prediction/saved_bytes.py), in the units of Korthikanti et al. 2022: multiples of
sbh bytes of a micro-batch in 16 bit. Written by hand, so that it is the same text wherever it is drawn.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import NamedTuple

from megaselect.config import Config
from megaselect.prediction.saved_bytes import LayerShape, saved_tensors
from megaselect.recomputation.plan import make_plan
from megaselect.recomputation.presets import PRESETS, setting_label

BARS = (  # attention, preset
    *(("unfused", name) for name in ("none", "selective", "core_attn dropout", "all", "full")),
    *(("fused", name) for name in ("none", "all")),
)


class Group(NamedTuple):
    """Tensors that share a colour; the colours are Okabe and Ito's, told apart by colour-blind readers too."""

    label: str
    colour: str
    tensors: frozenset[str]


GROUPS = (
    Group("residual stream", "#000000", frozenset({"block input", "ln2 input"})),
    Group("q, k, v, context", "#0072b2", frozenset({"q, k, v", "context"})),
    Group("fc1 output", "#56b4e9", frozenset({"fc1 output"})),
    Group("gelu output", "#009e73", frozenset({"gelu output"})),
    Group("layernorm outputs", "#e69f00", frozenset({"ln1 output", "ln2 output"})),
    Group("hidden dropout masks", "#cc79a7", frozenset({"projection dropout mask", "MLP dropout mask"})),
    Group("scores, probs, dropped probs", "#d55e00", frozenset({"scores", "probs", "dropped probs"})),
    Group("attention dropout mask", "#f0e442", frozenset({"attention dropout mask"})),
)
WIDTH, LEFT, RIGHT, BAR, GAP, TOP, LEGEND_ROW = 760, 150, 60, 26, 12, 104, 22
COLUMNS = 3


def kept_in_units(config: Config) -> dict[str, dict[str, float]]:
    """Setting -> group's label -> multiples of sbh, statistics left out (they are below a hundredth)."""
    bars = {}
    for attention, preset in BARS:
        shape = replace(LayerShape.of(config, element_bytes=2), attention=attention)
        rows = [row for row in saved_tensors(shape, make_plan(PRESETS[preset], 1)) if row.layer]
        unit = shape.tokens * shape.hidden
        bars[setting_label(attention, PRESETS[preset])] = {
            group.label: sum(row.bytes for row in rows if row.name in group.tensors) / unit for group in GROUPS
        }
    return bars


def draw(config: Config, config_name: str) -> str:
    """The whole file."""
    bars = kept_in_units(config)
    longest = max(sum(parts.values()) for parts in bars.values())
    scale = (WIDTH - LEFT - RIGHT) / longest
    height = TOP + len(bars) * (BAR + GAP) + 10
    model = config.model
    title = (
        f"Saved for backward by a layer of {config_name} (s {model.seq_length}, h {model.hidden_size}, "
        f"a {model.num_attention_heads}), 16 bit, in sbh bytes"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="22" font-weight="600">{escape(title)}</text>',
        *_legend(),
    ]
    for number, (name, parts) in enumerate(bars.items()):
        lines += _bar(name, parts, TOP + number * (BAR + GAP), scale)
    return "\n".join([*lines, "</svg>", ""])


def _legend() -> list[str]:
    lines = []
    for number, group in enumerate(GROUPS):
        x, y = 12 + number % COLUMNS * 250, 46 + number // COLUMNS * LEGEND_ROW
        lines.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{group.colour}"/>')
        lines.append(f'<text x="{x + 18}" y="{y}">{escape(group.label)}</text>')
    return lines


def _bar(name: str, parts: dict[str, float], y: int, scale: float) -> list[str]:
    x, middle = float(LEFT), y + BAR / 2 + 5
    lines = [f'<text x="{LEFT - 8}" y="{middle:g}" text-anchor="end">{escape(name)}</text>']
    for group in GROUPS:
        width = parts[group.label] * scale
        if width:
            tip = f"{group.label}: {parts[group.label]:.4g} sbh"
            lines.append(
                f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{BAR}" fill="{group.colour}" '
                f'stroke="#ffffff"><title>{escape(tip)}</title></rect>'
            )
        x += width
    return [*lines, f'<text x="{x + 6:.2f}" y="{middle:g}">{sum(parts.values()):.4g}</text>']


if __name__ == "__main__":
    path = Path(sys.argv[1])
    sys.stdout.write(draw(Config.from_yaml(path), path.stem))
