"""Is a file one text, or JSON Lines? Told by its name where that says it, else by its first lines."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from megaselect.data.compressed import compression, open_text
from megaselect.data.documents import decode
from megaselect.data.json_lines import BYTE_ORDER_MARK, MAX_LINE_BYTES
from megaselect.data.json_record import NotJSONError, read_record
from megaselect.errors import DataError

# Enough of a line to see whether it begins an object.
_BEGINNING_BYTES = 256

_LINES_SUFFIXES = (".jsonl", ".ndjson", ".jsonlines", ".ldjson")


def file_kind(path: Path, json_field: str, json_files: str) -> str:
    """The kind of a text file, as in documents.Document.

    Files in whose first line is an object with the text, or in whose first two lines are objects, are JSON Lines
    whatever they are called. Raises DataError for any other .json file, unless `json_files` says what it is.
    """
    compressed = compression(path.name)
    name = path.name.lower().removesuffix(compressed)
    name = re.sub(r"(\.\d+)+$", "", name)  # such as part.json.00017
    if name.endswith(_LINES_SUFFIXES):
        return "jsonl" + compressed
    is_json = name.endswith(".json")
    if json_files == "text" or (is_json and json_files == "lines"):
        return ("text" if json_files == "text" else "jsonl") + compressed
    if _holds_lines(path, json_field, one_is_enough=is_json):
        return "jsonl" + compressed
    if is_json:
        raise DataError(
            f"the input {path} is not JSON Lines, an object with text on every line, as .json files with text are; "
            "write it so, or give --json-files text to take .json files as text, with all that is in them, or "
            "--json-files lines if it is"
        )
    return "text" + compressed


def _holds_lines(path: Path, json_field: str, *, one_is_enough: bool) -> bool:
    with open_text(path) as file:
        lines = _first_lines(file)
        first = _record(next(lines, b""))
        if not isinstance(first, dict):
            return False
        if isinstance(first.get(json_field), str):
            return True
        second = next(lines, None)
        return one_is_enough if second is None else isinstance(_record(second), dict)


def _first_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that are not blank."""
    while line := file.readline(_BEGINNING_BYTES):
        line = line.removeprefix(BYTE_ORDER_MARK).lstrip()
        if line.startswith(b"{") and not line.endswith(b"\n"):
            line += file.readline(MAX_LINE_BYTES)
        if line:
            yield line


def _record(line: bytes) -> Any:
    if not line.startswith(b"{"):
        return None
    try:
        return read_record(decode(line)[0])
    except NotJSONError:
        return None
