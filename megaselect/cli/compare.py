"""`megaselect compare`: recompute settings beside each other, measured: a table, JSON, and a page to open offline."""

from __future__ import annotations

import argparse
import importlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.compare_output import (
    DEFAULT_ROUNDS,
    DEFAULT_STEPS,
    DEFAULT_WARMUP_STEPS,
    at_least,
    check_reports,
    compare_and_report,
    fresh_directory,
)
from megaselect.cli.flags import CommandFlags, RunCommand, parse_run_args
from megaselect.errors import ComparisonError, DeviceError
from megaselect.units import parse_size, size_notes

if TYPE_CHECKING:
    from megaselect.comparison.compare import Request

_DESCRIPTION = """\
Train the first steps of a run with every recompute setting, in rounds of fresh
processes with the same seed and data, and show what each costs and buys: bytes
saved (predicted and measured), peak memory, step time, and whether the losses,
gradients and weights are the same to the bit. Writes compare.json and
compare.html, which opens offline."""


def main(argv: Sequence[str], prog: str) -> int:
    """Compare, print and write; 0 also where a setting did not train, as long as another one did."""
    if any(argument == "--model" or argument.startswith("--model=") for argument in argv):
        return importlib.import_module("megaselect.cli.compare_model").main(argv, prog)
    usage = "%(prog)s [--config FILE] [--settings NAME ...] [--steps N] [--rounds R] [flags]"
    flags = CommandFlags(prog, usage, _DESCRIPTION, SETTINGS_OF_COMMAND["compare"], _add_options)
    command = parse_run_args(argv, flags)
    logging = command.config.logging
    check_reports(logging)
    out = Path(getattr(command.options, "out", None) or fresh_directory(command.config_path.stem))
    request = _request(command, out, shlex.join([*prog.split(), *argv]))
    compare_and_report(request, logging, out, getattr(command.options, "json", False))
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("compare")
    group.add_argument(
        "--model",
        metavar="FACTORY",
        help="another model, without a config of ours: package.module:function, or a directory with a config.json of "
        "transformers; `megaselect compare --model FACTORY --help` lists its flags",
    )
    group.add_argument(
        "--settings",
        nargs="+",
        action="extend",
        metavar="NAME",
        help='what to compare: none, selective, all, full, or modules, such as "core_attn dropout"; another attention '
        'before it, as in "fused none" (default: these five, "fused none", "fused all", "sdpa none")',
    )
    numbers = {
        "--steps": ("N", f"timed steps in each process (default: {DEFAULT_STEPS})"),
        "--warmup": ("N", f"steps before them, not timed (default: {DEFAULT_WARMUP_STEPS})"),
        "--rounds": ("R", f"processes for each setting (default: {DEFAULT_ROUNDS})"),
    }
    for flag, (metavar, text) in numbers.items():
        group.add_argument(flag, type=int, metavar=metavar, help=text)
    group.add_argument("--out", metavar="DIR", help="where files go (default: runs/compare-CONFIG-TIME)")
    group.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else, on stdout")
    group.add_argument(
        "--largest-micro-batch",
        action="store_true",
        help="also find, by trying, the largest micro-batch that trains in each setting",
    )
    group.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="memory that the search for the largest micro-batch may take, such as 2GiB; on a CPU it must be given",
    )
    group.add_argument(
        "--memory-snapshot",
        action="store_true",
        help="on a GPU: write a memory snapshot of a step of each setting, for pytorch.org/memory_viz",
    )


def _request(command: RunCommand, out: Path, typed: str) -> Request:
    from megaselect.comparison.compare import Request
    from megaselect.comparison.row import Rounds
    from megaselect.comparison.settings import DEFAULT_SETTINGS, make_rows
    from megaselect.training.data_choice import follow_vocabulary

    options = command.options
    snapshot = getattr(options, "memory_snapshot", False)
    largest = getattr(options, "largest_micro_batch", False)
    limit = getattr(options, "memory_limit", None)
    if limit is not None and not largest:
        raise ComparisonError("--memory-limit is for --largest-micro-batch: give both, or neither")
    limit_bytes = None if limit is None else parse_size(limit, "--memory-limit")
    limit_notes = [] if limit is None else size_notes(limit, "--memory-limit")
    if snapshot or (largest and limit is None):
        _check_device(command, snapshot)
    plan = Rounds(
        rounds=at_least(getattr(options, "rounds", DEFAULT_ROUNDS), "--rounds"),
        steps=at_least(getattr(options, "steps", DEFAULT_STEPS), "--steps"),
        warmup_steps=at_least(getattr(options, "warmup", DEFAULT_WARMUP_STEPS), "--warmup"),
        snapshot_dir=out if snapshot else None,
    )
    config, notes = follow_vocabulary(command.config)
    return Request(
        config=config.to_dict(),
        config_name=command.config_path.stem,
        rows=make_rows(config, getattr(options, "settings", DEFAULT_SETTINGS)),
        rounds=plan,
        command=typed,
        tokens_per_step=config.training.global_batch_size * config.model.seq_length,
        notes=[*command.notes, *limit_notes, *notes],
        find_largest_micro_batch=largest,
        limit_bytes=limit_bytes,
    )


def _check_device(command: RunCommand, snapshot: bool) -> None:
    """What needs a GPU, or a limit where there is none."""
    from megaselect.devices import resolve_placement

    if resolve_placement(command.config.training).on_gpu:
        return
    if snapshot:
        raise DeviceError("--memory-snapshot needs a GPU, whose allocator records it: leave it out on a CPU")
    raise ComparisonError(
        "--largest-micro-batch on a CPU needs a limit, or the machine would run out of memory: --memory-limit 2GiB"
    )
