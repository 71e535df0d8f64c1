"""`megaselect train`: a command line becomes a run that reports to the console and to wandb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.cli.commands import SETTINGS_OF_COMMAND
from megaselect.cli.flags import CommandFlags, RunCommand, parse_run_args
from megaselect.cli.launchers import first_rank_tells
from megaselect.distributed.launcher_death import end_with_launcher

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.training.events import Sink
    from megaselect.training.signals import StopRequest

# By what stopped the run: as shells report the signal, and the code by which sysexits.h asks to be run again later.
EXIT_CODES = {None: 0, "SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "exit-after": 75}

_DESCRIPTION = """\
Train a GPT model. What is kept for the backward pass is chosen by --recompute;
the losses are the same, to the bit, with every choice."""


def parse_train_args(argv: Sequence[str], prog: str = "megaselect train") -> RunCommand:
    """Flags to a validated config and notes on it. Raises ConfigError."""
    usage = "%(prog)s [--config FILE] [--recompute MODE] [flags]"
    command = parse_run_args(argv, CommandFlags(prog, usage, _DESCRIPTION, SETTINGS_OF_COMMAND["train"]))
    training = command.config.training
    if training.warmup_steps >= training.max_steps:
        command.notes.append(
            f"note: the run ends at step {training.max_steps}, inside its warm-up of {training.warmup_steps} steps"
        )
    return command


def main(argv: Sequence[str], prog: str) -> int:
    """Train, and return the exit code: 0 when the run reached its last step, else that of what stopped it."""
    end_with_launcher()
    with first_rank_tells():
        command = parse_train_args(argv, prog)
    # After the flags: this import brings torch, and --help and mistyped flags should not wait for it.
    from megaselect.training.run import train

    summary = train(command.config, command.config_path.stem, command.notes, _make_sink)
    return EXIT_CODES[summary.stopped_by]


def _make_sink(config: Config, run_dir: Path, _: StopRequest) -> Sink:
    from megaselect.report.run_sinks import run_sinks

    return run_sinks(config.logging, run_dir, console=True)
