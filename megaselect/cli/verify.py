"""`megaselect verify`: every recompute setting of a config on real batches, checked. Exit code 1 where one fails."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.flags import CommandFlags, RunCommand, parse_run_args
from megaselect.errors import ConfigError

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.data.sampler import Batch
    from megaselect.verification.own_model import Progress
    from megaselect.verification.report import Report

CHECK_FAILED = 1

_DESCRIPTION = """\
Run real batches through every recompute mode and module set of each attention
choice, and check: losses and gradients equal those without recomputation, to
the bit; other attentions are equal but for rounding; dropout masks are the
function's, in forward and in backward; saved bytes are those predicted; each
module really ran again; no trainable parameter lacks a gradient. Exit code 1
where one fails."""


def main(argv: Sequence[str], prog: str) -> int:
    """Verify, print, and return the exit code: 0, or 1 where a check failed. Raises MegaselectError."""
    usage = "%(prog)s [--config FILE] [--batches N] [--json] [flags]"
    flags = CommandFlags(prog, usage, _DESCRIPTION, SETTINGS_OF_COMMAND["verify"], _add_options)
    command = parse_run_args(argv, flags)
    count = _batch_count(command.options)
    # After the flags: these imports bring torch, and --help and mistyped flags should not wait for it.
    from megaselect.report.stdout import stdout_console
    from megaselect.report.verify_table import print_report
    from megaselect.training.torch_state import set_determinism
    from megaselect.verification.own_model import CHECKS

    set_determinism(command.config.training.deterministic)
    if command.options.json:
        report = _verify(command, count, lambda title: None)
        print(json.dumps(report.as_dict()))
        return 0 if report.passed else CHECK_FAILED
    console = stdout_console()
    for note in command.notes:
        console.print(note, markup=False, highlight=False)
    with console.status("verifying") as status:
        report = _verify(command, count, lambda title: status.update(f"verifying {title}"))
    print_report(report, CHECKS, console)
    return 0 if report.passed else CHECK_FAILED


def _add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("verify")
    group.add_argument("--batches", default="1", metavar="N", help="micro-batches to verify with (default: 1)")
    group.add_argument("--json", action="store_true", default=False, help="print the report as JSON instead")


def _batch_count(options: argparse.Namespace) -> int:
    if not options.batches.isdecimal() or not int(options.batches):
        raise ConfigError(f"--batches {options.batches}: must be a number of micro-batches, 1 or more")
    return int(options.batches)


def _verify(command: RunCommand, count: int, progress: Progress) -> Report:
    from megaselect.devices import free_bytes, resolve_placement
    from megaselect.estimation.memory_check import check_memory_to_verify
    from megaselect.training.data_choice import follow_vocabulary
    from megaselect.verification.own_model import verify_config

    config, _ = follow_vocabulary(command.config)
    placement = resolve_placement(config.training)
    check_memory_to_verify(config, placement.element_bytes, free_bytes(placement.device))
    return verify_config(config, _batches(config, count), progress)


def _batches(config: Config, count: int) -> list[Batch]:
    """The first of the run's own training data."""
    from megaselect.training.datasets import open_datasets

    size = config.training.micro_batch_size
    source = open_datasets(config).train
    return [source.batch(number * size, size) for number in range(count)]
