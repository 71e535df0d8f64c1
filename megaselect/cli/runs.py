"""`megaselect runs`: a table of run directories. No torch."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaselect.cli.flags import OneLineParser
from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.report.run_list import ListedRun

DEFAULT_PLACE = Path("runs")

_DESCRIPTION = """\
List runs: those named, and those up to two levels below the directories
named. A run is starting, running, finished, stopped (by a signal or a time
limit), failed (by an error) or killed (it ended without a word)."""

# What --sort takes -> what comes first has the least of it. None sorts last.
_ORDERS: dict[str, Callable[[ListedRun], Any]] = {
    "changed": lambda run: -run.changed,
    "name": lambda run: run.path,
    "state": lambda run: run.state,
    "step": lambda run: None if run.step is None else -run.step,
    "loss": lambda run: run.loss,
    "best": lambda run: run.best_valid_loss,
    "speed": lambda run: None if run.tokens_per_s is None else -run.tokens_per_s,
}


def main(argv: Sequence[str], prog: str) -> int:
    """Print the runs; 0, also where there are none."""
    options = _parser(prog).parse_args(argv)
    for place in options.places:
        if not place.is_dir():
            raise ConfigError(f"{place}: no such directory; name run directories, or directories of them")
    # After the flags: --help and mistyped flags should not wait for it.
    from megaselect.report.run_list import find_runs, read_run

    places = options.places or [DEFAULT_PLACE]
    runs = [read_run(run_dir) for run_dir in find_runs(places)]
    runs.sort(key=lambda run: _key(_ORDERS[options.sort](run)))
    if options.json:
        print(json.dumps([_as_data(run) for run in runs], indent=2))
    elif not runs:
        print(f"no runs in {', '.join(map(str, places))}")
    else:
        from megaselect.report.runs_table import print_runs
        from megaselect.report.stdout import stdout_console

        print_runs(runs, stdout_console(), time.time())
    return 0


def _key(value: Any) -> tuple[bool, Any]:
    """What is not known, or not a number, comes last."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return missing, None if missing else value


def _as_data(run: ListedRun) -> dict[str, Any]:
    """JSON has no NaN: a loss that is none is null."""
    content = asdict(run).items()
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in content}


def _parser(prog: str) -> OneLineParser:
    parser = OneLineParser(
        prog=prog,
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "places", nargs="*", type=Path, metavar="DIR", help=f"runs, or directories of them (default: {DEFAULT_PLACE}/)"
    )
    parser.add_argument(
        "--sort", choices=tuple(_ORDERS), default="changed", help="order (default: changed, newest first)"
    )
    parser.add_argument("--json", action="store_true", help="print everything that is known as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
