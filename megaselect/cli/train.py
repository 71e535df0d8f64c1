"""`megaselect train`: a parsed command line becomes a run that reports to the console and to wandb."""

from __future__ import annotations

from pathlib import Path

from megaselect.cli.flags import TrainCommand
from megaselect.config import Config
from megaselect.report.console import ConsoleSink
from megaselect.report.sinks import Sinks
from megaselect.report.wandb_sink import WandbSink
from megaselect.training.events import Sink
from megaselect.training.run import train

INTERRUPTED = 130  # the exit code by which shells know Ctrl-C


def run(command: TrainCommand) -> int:
    """Train, and return the exit code: 0 when the run reached its last step, 130 when it was interrupted."""
    summary = train(command.config, command.config_path.stem, command.notes, _sinks)
    return INTERRUPTED if summary.interrupted else 0


def _sinks(config: Config, run_dir: Path) -> Sink:
    logging = config.logging
    console = ConsoleSink(logging.log_interval)
    wandb = WandbSink(logging.wandb, logging.wandb_project, logging.wandb_group, run_dir, note=console.note)
    return Sinks([console, wandb])
