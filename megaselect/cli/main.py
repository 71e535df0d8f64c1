"""Entry point of `megaselect` and train.py: dispatches, and turns errors into one line and an exit code.

Exit codes: 0 done, 2 an error that the user can mend, 130 interrupted.
"""

import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

from megaselect import __version__
from megaselect.errors import ConfigError, MegaselectError

_USAGE = """\
usage: megaselect {train,data} ...

Trains GPT models; --recompute changes memory and time and nothing else.

commands:
  train       train a model; `megaselect train --help` lists the flags
  data        prepare a dataset; `megaselect data --help` says how

flags:
  --version   show the version and exit
  -h, --help  show this text and exit
  --debug     show the traceback of an error"""

_COMMANDS = ("train", "data")


def main(argv: Sequence[str] | None = None, train_prog: str = "megaselect train") -> int:
    """Run one command and return its exit code. `argv` is without the program's name; None: the process's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        return _dispatch([word for word in arguments if word != "--debug"], debug, train_prog)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MegaselectError as error:
        return _fail(str(error), debug)
    except ModuleNotFoundError as error:
        if (error.name or "megaselect").partition(".")[0] == "megaselect":
            raise
        return _fail(
            f"the Python package {error.name} is not installed; `pip install .` installs what is needed", debug
        )


def _dispatch(arguments: list[str], debug: bool, train_prog: str) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command == "train":
        return _train([*rest, "--debug"] if debug else rest, train_prog)
    if command == "data":
        return _data(rest)
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command == "--version":
        print(f"megaselect {__version__}")
        return 0
    near = get_close_matches(command, _COMMANDS, n=1)
    raise ConfigError(f"unknown command {command}; " + (f"did you mean {near[0]}?" if near else "use train or data"))


def _train(arguments: list[str], prog: str) -> int:
    from megaselect.cli.flags import parse_train_args

    command = parse_train_args(arguments, prog)
    # After the flags: this import brings torch, and --help and mistyped flags should not wait for it.
    from megaselect.cli import train

    return train.run(command)


def _data(arguments: list[str]) -> int:
    from megaselect.cli import data
    from megaselect.cli.flags import OneLineParser

    parser = OneLineParser(prog="megaselect", allow_abbrev=False)
    data.add_data_parser(parser.add_subparsers(dest="command"))
    data.run(parser.parse_args(["data", *arguments]))
    return 0


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return 2
