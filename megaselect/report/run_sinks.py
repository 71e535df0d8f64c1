"""The sinks of a training run: the command's and the Python call's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megaselect.config import LoggingConfig
from megaselect.report.console import ConsoleSink
from megaselect.report.sinks import Sinks
from megaselect.report.wandb_environment import group_for, project_for
from megaselect.report.wandb_sink import WandbSink
from megaselect.training.events import Sink


def run_sinks(logging: LoggingConfig, run_dir: Path, console: bool, callbacks: Sequence[Sink] = ()) -> Sinks:
    """The console where it is asked for, Weights & Biases and TensorBoard as the config says, then the callbacks.

    These come last: where one raises an exception, the others have heard of the event. Raises ConfigError.
    """
    consoles = [ConsoleSink(logging.log_interval)] if console else []
    note = Sinks([*consoles, *callbacks]).note
    recorders: list[Sink] = [WandbSink(logging.wandb, project_for(logging), group_for(logging), run_dir, note)]
    if logging.tensorboard:
        from megaselect.report.tensorboard_sink import TensorBoardSink  # an extra brings what it needs

        recorders.append(TensorBoardSink(run_dir, note))
    return Sinks([*consoles, *recorders, *callbacks])
