"""The command line of benchmarks/run.py. Needs nothing but Python: --help should not wait for torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from benchmarks.settings import ATTENTIONS, BASELINES, KERNELS, RECOMPUTE, SHAPES

PARTS = {
    "headline": "bits of the modes, then K1 and K2, then whole steps; at the end each target",
    "kernels": "K1, K2, layernorm and bias+dropout+residual+layernorm beside torch's",
    "step": "step time, memory and bits of every recompute setting",
    "sweep": "step time and peak over sequence lengths and micro-batches",
    "baselines": "other GPTs with the same shapes, data and optimizer beside ours",
    "any-model": "megaselect.recompute on models of transformers beside what others have",
    "scale": "several ranks: ours beside a plain GPT under FSDP2, and bytes sent",
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
        elif name == "any-model":
            _add_any_model(part)
        elif name == "scale":
            _add_scale(part)
        elif name != "headline":
            _add_models(part, name)
    return parser.parse_args(arguments)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    parser.add_argument("--out", type=Path, help="also write a report: Markdown for .md, JSON for any other name")
    parser.add_argument("--minutes", metavar="X", type=_positive, default=MINUTES, help=f"limit (default {MINUTES})")
    parser.add_argument("--rounds", metavar="N", type=_count, help="turns of each contender (default 10; CPU 5)")
    parser.add_argument("--seconds", metavar="X", type=_positive, help="of measuring a case, about")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--case", metavar="KEY", nargs="+", help="only the cases of exactly these names")
    parser.add_argument("--filter", metavar="TEXT", nargs="+", default=(), help="only cases with all of these in them")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--commit", help="what to record as commit where git is absent")


def _add_kernels(parser: argparse.ArgumentParser) -> None:
    _add_choices(parser, "--kernel", KERNELS, "default: all")
    parser.add_argument("--seq", metavar="N", type=_count, nargs="+", help="sequence lengths")
    parser.add_argument("--head-size", metavar="N", type=_count, nargs="+", help="of K2 (default 64 128)")
    parser.add_argument("--dropout", metavar="X", type=_probability, nargs="+", help="default 0 0.1 0.125")


def _add_any_model(parser: argparse.ArgumentParser) -> None:
    _add_choices(parser, "--shape", SHAPES, "default: all")
    parser.add_argument("--layers", metavar="N", type=_count, help="of the model")
    parser.add_argument("--seq", metavar="N", type=_count, help="sequence length")
    parser.add_argument("--micro-batch", metavar="N", type=_count, help="size")
    parser.add_argument("--budgets", action="store_true", help="also plans for the bytes that torch's budgets save")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: says nothing about time")


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ranks", metavar="N", type=_several, default=2, help="that train together (default 2)")
    parser.add_argument("--accumulate", metavar="N", type=_count, default=1, help="micro-batches a rank (default 1)")
    parser.add_argument("--config", metavar="NAME", help="in configs/ or a YAML file (GPU gpt2-124m, CPU scale.yaml)")
    parser.add_argument("--micro-batch", metavar="N", type=_count, help="size (default: the config's)")
    parser.add_argument("--attention", choices=("unfused", "fused"), help="of ours (default: GPU fused, CPU unfused)")
    _add_dtype(parser)


def _add_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dtype", choices=("auto", "bf16", "fp16", "fp32"), default="auto")


def _add_models(parser: argparse.ArgumentParser, part: str) -> None:
    parser.add_argument("--config", metavar="NAME", nargs="+", help="names in configs/ or YAML files")
    parser.add_argument("--seq", metavar="N", type=_count, nargs="+", help="lengths (tokens a micro-batch stay)")
    parser.add_argument("--micro-batch", metavar="N", type=_count, nargs="+", help="sizes")
    _add_choices(parser, "--attention", ATTENTIONS, "default: all")
    _add_choices(parser, "--recompute", tuple(RECOMPUTE), "core_attn and layernorm: with those before")
    _add_dtype(parser)
    if part == "step":
        parser.add_argument("--compile", choices=("no", "yes", "both"), help="default both; CPU no")
    if part == "baselines":
        _add_choices(parser, "--baseline", BASELINES, "default: all")


def _add_choices(parser: argparse.ArgumentParser, flag: str, choices: tuple[str, ...], note: str) -> None:
    """One or more of `choices`, which the help lists once: argparse itself would in lines as long as they are."""
    parser.add_argument(flag, metavar="NAME", nargs="+", choices=choices, help=f"of {', '.join(choices)} ({note})")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _several(text: str) -> int:
    count = _count(text)
    if count < 2:
        raise argparse.ArgumentTypeError("fewer than 2 ranks reduce nothing")
    return count


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
