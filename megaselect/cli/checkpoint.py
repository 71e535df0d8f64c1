"""`megaselect checkpoint`: read checkpoints to the last byte, and make one file of what many ranks wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaselect.cli.flags import OneLineParser
from megaselect.cli.words import unknown_command
from megaselect.units import size

if TYPE_CHECKING:
    from megaselect.training.consolidation import Verified

_PATH = "a run directory, or a checkpoints/step-N in it"

_VERIFY = """\
Read every byte of checkpoints and compare it with their manifests. Prints a
line for each; exit code 1 where one is damaged."""

_CONSOLIDATE = """\
Write a checkpoint of many ranks as one process would have written it:
model.safetensors and optimizer.safetensors with whole tensors, the same bits.
`megaselect train --resume DIR` continues from it. Of a run directory it is the
newest whole checkpoint."""


def main(argv: Sequence[str], prog: str) -> int:
    """Run one of the commands; 1 where a checkpoint is damaged."""
    words = [word for word in argv if word != "--debug"]
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        raise unknown_command(words[0], _COMMANDS)
    parser = OneLineParser(prog=prog, description="Verify and consolidate checkpoints.", allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_command in _COMMANDS.values():
        add_command(commands)
    args = parser.parse_args(words)
    code: int = args.run(args)
    return code


def _add_verify(commands: Any) -> None:
    verify = _parser(commands, "verify", "read every byte of checkpoints", _VERIFY)
    verify.set_defaults(run=_verify)


def _add_consolidate(commands: Any) -> None:
    consolidate = _parser(commands, "consolidate", "make one process's checkpoint of many ranks'", _CONSOLIDATE)
    consolidate.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="becomes a run directory; must not exist"
    )
    consolidate.set_defaults(run=_consolidate)


def _parser(commands: Any, name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help=_PATH)
    return parser


_COMMANDS = {"verify": _add_verify, "consolidate": _add_consolidate}


def _verify(args: argparse.Namespace) -> int:
    # After the flags: this import brings torch, and --help and mistyped flags should not wait for it.
    from megaselect.training.consolidation import verified

    damaged = False
    for each in verified(args.path):
        print(_line(each), flush=True)
        damaged = damaged or each.damage is not None
    return int(damaged)


def _line(each: Verified) -> str:
    if each.damage is not None:
        return f"{each.path.name}  damaged: {each.damage}"
    return f"{each.path.name}  whole: {each.layout}; {each.files} files, {size(each.bytes)}"


def _consolidate(args: argparse.Namespace) -> int:
    from megaselect.training.consolidation import consolidate

    home, notes = consolidate(args.path, args.out)
    for note in notes:
        print(note, file=sys.stderr)
    print(f"{home}: the checkpoint of one process; --resume {args.out} continues from it")
    return 0
