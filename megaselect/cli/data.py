"""`megaselect data`: prepare datasets and look at them. Each command has a module of its own."""

from collections.abc import Sequence
from typing import Any

from megaselect.cli.data_inspect import add_inspect_parser
from megaselect.cli.data_prepare import add_prepare_parser
from megaselect.cli.flags import OneLineParser
from megaselect.cli.words import unknown_command

# Each adds its parser and sets `run`, to be called with the parsed arguments. They import nothing heavy.
_COMMANDS = {"prepare": add_prepare_parser, "inspect": add_inspect_parser}


def main(argv: Sequence[str], prog: str) -> int:
    """Run one of the data commands."""
    words = [word for word in argv if word != "--debug"]
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        raise unknown_command(words[0], _COMMANDS)
    parser = OneLineParser(prog=prog.split()[0], allow_abbrev=False)
    add_data_parser(parser.add_subparsers(dest="command"))
    args = parser.parse_args(["data", *words])
    args.run(args)
    return 0


def add_data_parser(subparsers: Any) -> None:
    """Add `data` and its commands. The parsed arguments carry `run`, to be called with them."""
    data = subparsers.add_parser("data", help="prepare datasets and look at them")
    commands = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in _COMMANDS.values():
        add_command(commands)
