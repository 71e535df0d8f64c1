"""docs/silent-errors.md: its rows, the sentences that it quotes, and what verify says now."""

from __future__ import annotations

import re
from pathlib import Path

from corpus import outcome
from corpus.catalogue import FAULTS
from corpus.fault import Fault

ROW = re.compile(r"^### (?P<name>[\w-]+)\n(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
QUOTE = re.compile(r"^> .*\n", re.MULTILINE)
NUMBER = re.compile(r"(?<=[ (\[])(-?\d[\d.,]*(e[-+]\d+)?|nan|inf)\b")


def quotes(text: str) -> dict[str, str]:
    """Fault -> the sentence that its row quotes, "" where it has none."""
    found = {}
    for row in ROW.finditer(text):
        quote = QUOTE.search(row["text"])
        found[row["name"]] = quote[0].removeprefix("> ").strip() if quote else ""
    return found


def says_now(fault: Fault) -> str:
    """What verify says of the fault."""
    return outcome.sentence(outcome.found(outcome.report_of(fault.wrong), fault.check))


def without_numbers(sentence: str) -> str:
    """How much a tensor differs is another number with each torch."""
    return NUMBER.sub("#", sentence)


def write(path: Path) -> None:
    """Put what verify says now into the rows of the document, where it can be run here."""

    def replaced(row: re.Match[str]) -> str:
        fault = FAULTS[row["name"]]
        if outcome.missing(fault.needs):
            return row[0]
        return QUOTE.sub(lambda _: f"> {says_now(fault)}\n", row[0], count=1)

    path.write_text(ROW.sub(replaced, path.read_text(encoding="utf-8")), encoding="utf-8")
