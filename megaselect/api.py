"""Training from Python: what `megaselect train` does, as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megaselect.config import Config
from megaselect.config.format_value import format_value
from megaselect.errors import CallbackError, ConfigError
from megaselect.report.run_sinks import run_sinks
from megaselect.report.sinks import Sinks
from megaselect.training import run
from megaselect.training.callbacks import Callback, CallbackSink
from megaselect.training.events import RunSummary
from megaselect.training.signals import StopRequest

CONFIG_NAME = "python"  # in place of a config file's: in the name of a new run directory, on the console and in W&B


def train(config: Config, *, callbacks: Sequence[Callback] = (), console: bool = False) -> RunSummary:
    """Train to config.training.max_steps, with the bits, the run directory and the records of `megaselect train`.

    A run whose directory holds a checkpoint goes on from it. callbacks: hear of the run's events, in this order; see
    Callback. console: print what the command prints; without it nothing is printed, and notes and warnings reach the
    callbacks alone.

    Ctrl-C, SIGTERM and SIGHUP finish the step and save, and the summary's stopped_by names them; a second Ctrl-C raises
    KeyboardInterrupt. Off the main thread, where Python can handle no signals, they do what they did before. Torch's
    random states and settings, and the handlers of signals and warnings, are afterwards as they were; for as long as
    they are the run's, a process has room for one.

    Raises MegaselectError: CallbackError for what a callback raised, and the errors that the command tells in a line.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"train({format_value(config)}): must be a Config, such as Config.from_yaml('tiny')")
    check_callbacks(callbacks)

    def make_sink(config: Config, run_dir: Path, stop: StopRequest) -> Sinks:
        return run_sinks(config.logging, run_dir, console, [CallbackSink(callback, stop) for callback in callbacks])

    return run.train(config, CONFIG_NAME, [], make_sink)


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Raises CallbackError where it is no sequence of callbacks."""
    given = callbacks if isinstance(callbacks, Sequence) else [None]
    if not all(isinstance(callback, Callback) for callback in given):
        said = format_value(callbacks)
        raise CallbackError(f"callbacks={said}: must be a list of objects of megaselect.Callback's subclasses")
