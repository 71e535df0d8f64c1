"""`megaselect compare`: recompute settings beside each other, measured: a table, JSON, and a page to open offline."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.flags import CommandFlags, RunCommand, parse_run_args
from megaselect.errors import ComparisonError, DeviceError
from megaselect.units import parse_size, size_notes

if TYPE_CHECKING:
    from megaselect.comparison.compare import Request
    from megaselect.comparison.result import Comparison

DEFAULT_STEPS, DEFAULT_WARMUP_STEPS, DEFAULT_ROUNDS = 6, 2, 2

_DESCRIPTION = """\
Train the first steps of a run with every recompute setting, in rounds of fresh
processes with the same seed and data, and show what each costs and buys: bytes
saved (predicted and measured), peak memory, step time, and whether the losses,
gradients and weights are the same to the bit. Writes compare.json and
compare.html, which opens offline."""


def main(argv: Sequence[str], prog: str) -> int:
    """Compare, print and write; 0 also where a setting did not train, as long as another one did."""
    usage = "%(prog)s [--config FILE] [--settings NAME ...] [--steps N] [--rounds R] [flags]"
    flags = CommandFlags(prog, usage, _DESCRIPTION, SETTINGS_OF_COMMAND["compare"], _add_options)
    command = parse_run_args(argv, flags)
    if importlib.util.find_spec("plotly") is None:  # before the minutes of measuring, not after them
        raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
    from megaselect.comparison.compare import compare
    from megaselect.report.wandb_connection import check_key

    check_key(command.config.logging.wandb)
    out = Path(getattr(command.options, "out", None) or _fresh_directory(command))
    request = _request(command, out, shlex.join([*prog.split(), *argv]))
    _make_directory(out)
    comparison = compare(request, _show_progress)
    _finish(comparison, command, out)
    return 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("compare")
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
    from megaselect.comparison.rounds import Rounds
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
        rounds=_number(options, "rounds", DEFAULT_ROUNDS),
        steps=_number(options, "steps", DEFAULT_STEPS),
        warmup_steps=_number(options, "warmup", DEFAULT_WARMUP_STEPS),
        snapshot_dir=out if snapshot else None,
    )
    config, notes = follow_vocabulary(command.config)
    return Request(
        config=config,
        config_name=command.config_path.stem,
        rows=make_rows(config, getattr(options, "settings", DEFAULT_SETTINGS)),
        rounds=plan,
        command=typed,
        notes=[*command.notes, *limit_notes, *notes],
        find_largest_micro_batch=largest,
        limit_bytes=limit_bytes,
    )


def _number(options: argparse.Namespace, name: str, default: int) -> int:
    value = getattr(options, name, default)
    if value < 1:
        raise ComparisonError(f"--{name} {value}: must be at least 1")
    return value


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


def _fresh_directory(command: RunCommand) -> str:
    return f"runs/compare-{command.config_path.stem}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / "compare.json"
        if not probe.exists():
            probe.touch()
            probe.unlink()
    except OSError as error:
        raise ComparisonError(f"cannot write to {out}: {error.strerror}; choose another --out") from error


def _show_progress(piece: str) -> None:
    print(piece, end="", file=sys.stderr, flush=True)


def _finish(comparison: Comparison, command: RunCommand, out: Path) -> None:
    """Files first, then what is printed, then W&B, which may have to wait for a network."""
    from megaselect.comparison.result import to_json, write_comparison
    from megaselect.report.compare_html import write_html
    from megaselect.report.compare_table import print_comparison
    from megaselect.report.stdout import stdout_console
    from megaselect.report.wandb_comparison import log_comparison
    from megaselect.report.wandb_environment import group_for, project_for

    page = out / "compare.html"
    write_comparison(comparison, out / "compare.json")
    write_html(comparison, page)
    if getattr(command.options, "json", False):
        print(to_json(comparison))
    else:
        print_comparison(comparison, stdout_console())
        print(f"written to {out}: compare.json, {page.name}")
    logging = command.config.logging
    group = group_for(logging) or out.name
    log_comparison(
        comparison, logging.wandb, project_for(logging), group, out, lambda note: _show_progress(f"{note}\n"), page
    )
