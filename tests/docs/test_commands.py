"""Documents show what the commands in them print: blocks that begin with `$ megaselect` are run.

Every shown line is one that is printed, in the same order; a line of one dot-dot-dot stands for lines left out.
"""

import re
import shlex
from pathlib import Path

import pytest

from megaselect.cli.main import main

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^    \$ megaselect (?P<command>estimate .*)\n(?P<output>(?:(?:    .*)?\n)*)", re.MULTILINE)
DOCUMENTS = ("docs/estimate.md", "docs/which-mode.md")


def blocks():
    for document in DOCUMENTS:
        for block in BLOCK.finditer((ROOT / document).read_text(encoding="utf-8")):
            lines = [line.removeprefix("    ").rstrip() for line in block["output"].splitlines()]
            yield pytest.param(block["command"], [line for line in lines if line], id=f"{document}: {block['command']}")


@pytest.mark.parametrize(("command", "shown"), list(blocks()))
def test_a_document_shows_what_its_command_prints(command, shown, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(command)) == 0
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert shown
    place = 0
    skipped = False
    for line in shown:
        if line == "…":
            skipped = True
            continue
        assert line in printed[place:], f"not printed: {line}"
        found = printed.index(line, place)
        assert skipped or found == place, f"left out before: {line}"
        place, skipped = found + 1, False
    assert skipped or place == len(printed), f"left out at the end: {printed[place:]}"


def test_the_documents_have_such_blocks():
    assert len(list(blocks())) >= 5
