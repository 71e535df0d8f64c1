"""`megaselect train`: a command line becomes a run that reports to the console and to wandb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.cli.flags import CommandFlags, RunCommand, parse_run_args

if TYPE_CHECKING:
    from megaselect.config import Config
    from megaselect.training.events import Sink

INTERRUPTED = 130  # the exit code by which shells know Ctrl-C

_DESCRIPTION = """\
Train a GPT model. What is kept for the backward pass is chosen by --recompute;
the losses are the same, to the bit, with every choice."""


def parse_train_args(argv: Sequence[str], prog: str = "megaselect train") -> RunCommand:
    """Flags to a validated config and notes on it. Raises ConfigError."""
    usage = "%(prog)s [--config FILE] [--recompute MODE] [flags]"
    command = parse_run_args(argv, CommandFlags(prog, usage, _DESCRIPTION))
    training = command.config.training
    if training.warmup_steps >= training.max_steps:
        command.notes.append(
            f"note: the run ends at step {training.max_steps}, inside its warm-up of {training.warmup_steps} steps"
        )
    return command


def main(argv: Sequence[str], prog: str) -> int:
    """Train, and return the exit code: 0 when the run reached its last step, 130 when it was interrupted."""
    command = parse_train_args(argv, prog)
    # After the flags: this import brings torch, and --help and mistyped flags should not wait for it.
    from megaselect.training.run import train

    summary = train(command.config, command.config_path.stem, command.notes, _sinks)
    return INTERRUPTED if summary.interrupted else 0


def _sinks(config: Config, run_dir: Path) -> Sink:
    from megaselect.report.console import ConsoleSink
    from megaselect.report.sinks import Sinks
    from megaselect.report.wandb_sink import WandbSink

    logging = config.logging
    console = ConsoleSink(logging.log_interval)
    wandb = WandbSink(logging.wandb, logging.wandb_project, logging.wandb_group, run_dir, note=console.note)
    return Sinks([console, wandb])
