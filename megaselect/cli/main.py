"""Entry point of `megaselect` and train.py: dispatches, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a check failed (verify, checkpoint verify), 2 an error that the user can mend, 130 interrupted,
141 the reader of the output left (as shells report SIGPIPE). Those of megaselect train when it was stopped are in
megaselect.cli.train; it goes on without a reader.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from megaselect import __version__
from megaselect.cli.launchers import Launch, keep_connections_silent, let_others_end, refused_launch, this_launch
from megaselect.cli.words import unknown_command
from megaselect.errors import MegaselectError, ToldByAnotherRank
from megaselect.report.output import drop_unwritten, replace_what_cannot_be_encoded

READER_LEFT = 141

# Command -> what it is for. Each is a module of this package, imported when it is asked for, with main(argv, prog).
_COMMANDS = {
    "train": "train a model",
    "estimate": "predict what each recompute setting costs and buys",
    "verify": "check that recomputation changes memory and time and nothing else",
    "compare": "measure recompute settings beside each other",
    "runs": "list run directories with state, loss and speed",
    "evaluate": "loss and perplexity of a trained model on a dataset",
    "sample": "let a trained model write text",
    "checkpoint": "verify checkpoints, and make one file of many ranks'",
    "dashboard": "save a dashboard of W&B runs",
    "data": "prepare datasets and look at them",
}

# Package -> the extra that brings it, for those that `pip install .` leaves out.
_EXTRAS = {"plotly": "report", "tensorboard": "tensorboard", "wandb_workspaces": "wandb"}

_USAGE = """\
usage: megaselect COMMAND ...

Trains GPT models; --recompute changes memory and time and nothing else.

commands:
{summaries}

`megaselect COMMAND --help` lists the flags of a command.

flags:
  --version   show the version and exit
  -h, --help  show this text and exit
  --debug     show the traceback of an error"""


def main(argv: Sequence[str] | None = None, train_prog: str = "megaselect train") -> int:
    """Run one command and return its exit code. `argv` is without the program's name; None: the process's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    _open_closed_streams()
    replace_what_cannot_be_encoded(sys.stdout)
    if this_launch() and not debug:
        keep_connections_silent()
    try:
        code = _run([word for word in arguments if word != "--debug"], debug, train_prog)
        sys.stdout.flush()  # here, where its failure can be told
        return code
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return READER_LEFT
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        return _fail(f"cannot write the output: {error.strerror}", debug)
    finally:
        _settle()


def _open_closed_streams() -> None:
    """Python has None for those that the process started without."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def _settle() -> None:
    """Nothing is left for Python to write at exit that cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            drop_unwritten(stream, for_good=True)


def _run(arguments: list[str], debug: bool, train_prog: str) -> int:
    try:
        return _dispatch(arguments, debug, train_prog)
    except KeyboardInterrupt:
        launch = this_launch()
        if launch:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches a rank twice: torchrun sends its own on
        if not (launch and launch.rank):
            _tell("interrupted")
        return 130
    except MegaselectError as error:
        if not isinstance(error, ToldByAnotherRank):
            _fail(str(error), debug)
        if launch := this_launch():
            let_others_end(launch)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "megaselect").partition(".")[0]
        if package == "megaselect":
            raise
        what = f"'.[{_EXTRAS[package]}]'" if package in _EXTRAS else "."
        return _fail(
            f"the Python package {error.name} is not installed; `pip install {what}` installs what is needed", debug
        )


def _dispatch(arguments: list[str], debug: bool, train_prog: str) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in _COMMANDS:
        if launch := refused_launch([command, *rest]):
            return _refuse(launch, debug)
        prog = train_prog if command == "train" else f"megaselect {command}"
        return import_module(f"megaselect.cli.{command}").main([*rest, "--debug"] if debug else rest, prog)
    if command in ("-h", "--help"):
        summaries = "\n".join(f"  {name:<10}  {summary}" for name, summary in _COMMANDS.items())
        print(_USAGE.format(summaries=summaries))
        return 0
    if command == "--version":
        print(f"megaselect {__version__}")
        return 0
    raise unknown_command(command, _COMMANDS)


def _refuse(launch: Launch, debug: bool) -> int:
    """One line in all; the exit code of every process."""
    if launch.rank == 0:
        _fail(launch.refusal(), debug)
    let_others_end(launch)
    return 2


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _tell(f"error: {message}")
    return 2


def _tell(line: str) -> None:
    with suppress(OSError):  # the exit code tells it too
        print(line, file=sys.stderr)
