"""One runner for all figures: `python benchmarks/run.py headline|kernels|step|sweep|baselines`.

Needs torch, triton, NumPy and PyYAML. Every figure is a median with its 20 % and 80 % quantiles; what is compared takes
turns in one run. With --out, finished cases are remembered beside the file, and a second start skips them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

PARTS = {
    "headline": "bits of the modes, then K1 and K2, then whole steps; at the end each target",
    "kernels": "K1, K2, layernorm and bias+dropout+residual+layernorm beside torch's",
    "step": "step time, memory and bits of every recompute setting",
    "sweep": "step time and peak over sequence lengths and micro-batches",
    "baselines": "other GPTs with the same shapes, data and optimizer beside ours",
}
MINUTES = 7.5


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"error: {message}\n")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="benchmarks/run.py", description="Measures Megaselect and its baselines.")
    parts = parser.add_subparsers(dest="part", required=True, metavar="|".join(PARTS))
    for name, description in PARTS.items():
        part = parts.add_parser(name, help=description, description=description)
        _add_common(part)
        if name == "kernels":
            _add_kernels(part)
        elif name != "headline":
            _add_models(part, name)
    return parser.parse_args(arguments)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument("--out", type=Path, help="also write a report: Markdown for .md, JSON for any other name")
    parser.add_argument("--minutes", type=_positive, default=MINUTES, help=f"time limit (default {MINUTES})")
    parser.add_argument("--rounds", type=_count, help="turns of each contender (default 10; CPU 5)")
    parser.add_argument("--seconds", type=_positive, help="of measuring a case, about")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--case", nargs="+", help="only the cases of exactly these names")
    parser.add_argument("--filter", nargs="+", default=(), help="only cases with all of these in their name")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--commit", help="what to record as commit where git is absent")


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", nargs="+", choices=("k1", "k2", "bdrl", "layernorm"), help="default: all")
    parser.add_argument("--seq", type=_count, nargs="+", help="sequence lengths")
    parser.add_argument("--head-size", type=_count, nargs="+", help="of K2 (default 64 128)")
    parser.add_argument("--dropout", type=_probability, nargs="+", help="default 0 0.1 0.125")


def _add_models(parser: argparse.ArgumentParser, part: str) -> None:
    from benchmarks.settings import ATTENTIONS, BASELINES, RECOMPUTE

    parser.add_argument("--config", nargs="+", help="names in configs/ or YAML files")
    parser.add_argument("--seq", type=_count, nargs="+", help="sequence lengths (tokens a micro-batch stay)")
    parser.add_argument("--micro-batch", type=_count, nargs="+", help="sizes")
    parser.add_argument("--attention", nargs="+", choices=ATTENTIONS)
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, help="core_attn and layernorm: with those before")
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    if part == "step":
        parser.add_argument("--compile", choices=("no", "yes", "both"), help="default both; CPU no")
    if part == "baselines":
        parser.add_argument("--baseline", nargs="+", choices=BASELINES)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 0.998 or 0 < value < 0.002:
        raise argparse.ArgumentTypeError(f"{text!r} is no dropout probability: 0, or 0.002 to 0.998")
    return value


def main() -> int:
    """Exit status: 0; 1 where bits, bytes or kernels are wrong; 2 for settings that cannot run; 3 where the GPU failed
    and the same command goes on without what made it fail."""
    arguments = parse()
    from benchmarks.session import run_part  # torch takes seconds, and --help should not
    from megaselect.errors import MegaselectError

    try:
        report, status = run_part(arguments)
        if report is None:
            return 0
        print(json.dumps(report.document()) if arguments.json else report.text())
        if arguments.out:
            report.write(arguments.out)
    except (MegaselectError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    # The root in place of this folder: the package `benchmarks` is then importable, and its modules shadow nobody's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    sys.exit(main())
