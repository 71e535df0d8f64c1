"""Runs a document's Python as a reader would paste it, and compares what it prints with what the document shows.

    python tests/docs/run_document.py docs/checkpointing-101.md          # a diff and exit code 1 where they differ
    python tests/docs/run_document.py docs/checkpointing-101.md --write  # puts what was printed into the document

A ```python fence is run; a ```text fence after it, one blank line between them, is what it prints. All fences of a
document share one namespace. They are fed to a prompt line by line, so a fence that pastes badly fails here too.
"""

from __future__ import annotations

import argparse
import code
import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FENCES = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n.*?^```\n)?", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^```text\n", re.MULTILINE)


class DocumentError(Exception):
    """A fence that cannot be run or that belongs to nothing; says on which line of the document."""


class Prompt(code.InteractiveConsole):
    """A Python prompt that lets errors out, where the interactive one would print them and go on."""

    def run(self, source: str) -> str:
        """What it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            unfinished = [self.push(line) for line in [*source.splitlines(), ""]][-1]
        if unfinished:
            raise SyntaxError("the last statement is unfinished")
        return printed.getvalue()

    def showtraceback(self) -> None:
        """Called inside an except clause."""
        raise

    def showsyntaxerror(self, *_: Any, **__: Any) -> None:
        """Called inside an except clause."""
        raise


def as_printed(text: str) -> str:
    """The document, with every output replaced by what its code prints now.

    Raises DocumentError where code fails or an output follows no code.
    """
    prompt = Prompt({"__name__": "__main__"})

    def run(fences: re.Match[str]) -> str:
        line = text.count("\n", 0, fences.start()) + 1
        try:
            printed = prompt.run(fences["code"])
        except Exception as error:
            raise DocumentError(f"line {line}: {type(error).__name__}: {error}") from error
        output = f"\n```text\n{printed}```\n" if printed else ""
        return f"```python\n{fences['code']}```\n{output}"

    rest = FENCES.sub(lambda fences: "\n" * fences[0].count("\n"), text)
    stray = OUTPUT.search(rest)
    if stray:
        line = rest.count("\n", 0, stray.start()) + 1
        raise DocumentError(f"line {line}: an output that follows no code")
    return FENCES.sub(run, text)


def _without_trailing_blanks(text: str) -> list[str]:
    """Tables are padded to their width; documents are not."""
    return [line.rstrip() for line in text.splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description="Run a document's code and compare what it prints.")
    parser.add_argument("document", type=Path)
    parser.add_argument("--write", action="store_true", help="put what was printed into the document")
    chosen = parser.parse_args(arguments)
    text = chosen.document.read_text(encoding="utf-8")
    printed = as_printed(text)
    if chosen.write:
        chosen.document.write_text(printed, encoding="utf-8")
    elif _without_trailing_blanks(printed) != _without_trailing_blanks(text):
        lines = (text.splitlines(True), printed.splitlines(True))
        sys.stdout.writelines(difflib.unified_diff(*lines, str(chosen.document), "what was printed"))
        return 1
    print(f"{chosen.document}: {len(FENCES.findall(text))} blocks ran; every output is what they printed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
