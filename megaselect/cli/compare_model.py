"""`megaselect compare --model`: recompute settings of a model of anybody's, measured beside what others offer."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from megaselect.cli.compare_output import (
    DEFAULT_ROUNDS,
    DEFAULT_STEPS,
    DEFAULT_WARMUP_STEPS,
    at_least,
    check_reports,
    compare_and_report,
    fresh_directory,
)
from megaselect.cli.flags import OneLineParser
from megaselect.cli.model_flags import factory_parser
from megaselect.comparison.compare import Request
from megaselect.comparison.measurement import ModelChoices
from megaselect.comparison.model_rows import LEAST_WARMUP_STEPS, MODEL_SETTINGS, make_model_rows
from megaselect.comparison.row import Rounds
from megaselect.config import LoggingConfig
from megaselect.errors import ConfigError, MegaselectError

_DESCRIPTION = """\
Train a model of any make on one batch: untouched, with the settings of
megaselect.recompute, and with what others offer (transformers' checkpointing,
torch's selective checkpointing around each layer, torch_remat), in rounds of
fresh processes with the same seed. Shows of each the bytes that are saved,
predicted and measured, peak memory, step time, and whether losses, gradients
and weights are those of the untouched model to the bit. Writes compare.json and
compare.html.

--model takes package.module:function, a function without arguments that returns
an nn.Module, or a module and its batch; or a directory with a config.json of
transformers. A batch is a tensor, a tuple of arguments or a dictionary of
keyword arguments; a model without one whose config has a vocabulary gets random
input_ids and labels. The loss is what the model returns, its .loss or its
"loss"; of a model without one it is the mean of its output's squares."""


def main(argv: Sequence[str], prog: str) -> int:
    """Compare, print and write; 0 also where a row did not train, as long as another one did."""
    options = _parsed(_parser(prog), argv)
    rounds = Rounds(
        rounds=at_least(options.rounds, "--rounds"),
        steps=at_least(options.steps, "--steps"),
        warmup_steps=at_least(
            *(options.warmup, "--warmup", LEAST_WARMUP_STEPS),
            " with --model: the ledger watches the first, and a plan records the second",
        ),
    )
    choices = ModelChoices(
        model=options.model,
        device=options.device,
        dtype=options.dtype,
        autocast=options.autocast,
        batch_size=options.batch_size,
        seq_length=options.seq_length,
        seed=at_least(options.seed, "--seed", 0),
        deterministic=options.deterministic,
    )
    rows = make_model_rows(choices, options.settings or MODEL_SETTINGS)
    logging = LoggingConfig.model_validate({name: value for name, value in _logging(options).items() if value})
    check_reports(logging)
    name = Path(options.model).resolve().name if Path(options.model).is_dir() else options.model
    out = Path(options.out or fresh_directory(re.sub(r"[^\w.]+", "-", name)))
    config = {"model": asdict(choices)}
    typed = shlex.join([*prog.split(), *argv])
    request = Request(config, name, rows, rounds, typed)
    try:
        compare_and_report(request, logging, out, options.json)
    except MegaselectError:
        with contextlib.suppress(OSError):
            out.rmdir()  # which removes it where it is empty
        raise
    return 0


def _parsed(parser: OneLineParser, argv: Sequence[str]) -> argparse.Namespace:
    options, unknown = parser.parse_known_args(argv)
    if not unknown:
        return options
    flag = unknown[0].partition("=")[0]
    if flag == "--config":
        raise ConfigError("--config and --model: a model of your own takes no config; give one of the two")
    raise ConfigError(f"{flag}: not with --model; `{parser.prog} --model FACTORY --help` lists the flags")


def _logging(options: argparse.Namespace) -> dict[str, str | None]:
    return {"wandb": options.wandb, "wandb_project": options.wandb_project, "wandb_group": options.wandb_group}


def _parser(prog: str) -> OneLineParser:
    parser = factory_parser(prog, _DESCRIPTION)
    known = ", ".join(MODEL_SETTINGS)
    parser.add_argument(
        "--settings", nargs="+", action="extend", metavar="NAME", help=f"which of {known} to compare (default: all)"
    )
    _add_count(parser, "--steps", "N", "timed steps in each process", DEFAULT_STEPS)
    _add_count(parser, "--warmup", "N", "steps before them, not timed", DEFAULT_WARMUP_STEPS)
    _add_count(parser, "--rounds", "R", "processes for each row", DEFAULT_ROUNDS)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: %(default)s)")
    text = "of the weights, of a token batch and of every step's random numbers"
    _add_count(parser, "--seed", "N", text, ModelChoices.seed)
    parser.add_argument(
        "--deterministic", action="store_true", help="refuse operations whose bits vary from run to run"
    )
    parser.add_argument("--out", metavar="DIR", help="where files go (default: runs/compare-MODEL-TIME)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    parser.add_argument(
        "--wandb",
        choices=("auto", "online", "offline", "disabled"),
        help="Weights & Biases; auto, the default: online where a key is set, offline otherwise",
    )
    parser.add_argument("--logging.wandb-project", dest="wandb_project", metavar="NAME", help="project of the runs")
    parser.add_argument("--logging.wandb-group", dest="wandb_group", metavar="NAME", help="group of the runs")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_count(parser: OneLineParser, flag: str, metavar: str, text: str, default: int) -> None:
    parser.add_argument(flag, type=int, metavar=metavar, default=default, help=f"{text} (default: %(default)s)")
