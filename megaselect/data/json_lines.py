"""Files of JSON Lines: every line an object, one field of which is a document's text."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megaselect.data.compressed import open_text
from megaselect.data.documents import BLOCK_BYTES, Cutter, Document, RawBlock, decode
from megaselect.data.json_record import NotJSONError, read_record
from megaselect.errors import DataError

# Line end included. A line is parsed as a whole, which takes several times its length in memory.
MAX_LINE_BYTES = 16 * 1024 * 1024

_FIELDS_SHOWN = 8

_SURROGATES = re.compile("[\ud800-\udfff]")

# What some programs put at the beginning of UTF-8; files that were joined have it before other lines, too.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# 2**64 over the golden ratio. Its multiples modulo 2**64 never gather anywhere, however many are taken (Knuth, TAOCP
# volume 3, section 6.4): among any 34 lines of a file in a row, one is in a split of 5 %.
_GOLDEN_STEP = 0x9E3779B97F4A7C15
_WORD = 2**64


@dataclass(frozen=True, slots=True)
class LineOptions:
    """field: of each line's object, the text. The fractions are of the lines; the others are for training."""

    field: str = "text"
    valid_fraction: float = 0.0
    test_fraction: float = 0.0


class Lines(NamedTuple):
    """Whole lines of a file, about BLOCK_BYTES of them or one that is longer. path: as messages show it.

    moved: lines of the file that are in another split than the drawn one (see data.fill_splits), each with its split.
    """

    raw: bytes
    path: str
    kind: str
    seed: int
    first_line: int
    moved: tuple[tuple[int, str], ...] = ()


class LineText(NamedTuple):
    """One document. raw: its text as UTF-8. line: from 1. Counts are of what was no text and became U+FFFD.

    is_null: the field is there and has no text at all; raw is empty.
    """

    split: str
    line: int
    raw: bytes
    replaced_bytes: int
    replaced_surrogates: int
    is_null: bool = False

    def blocks(self, cut: Cutter) -> Iterator[RawBlock]:
        """The text cut as that of a text file is; no block at all where it is empty."""
        return cut(io.BytesIO(self.raw), len(self.raw))


def cut_lines(document: Document, moved: tuple[tuple[int, str], ...] = ()) -> Iterator[Lines]:
    """A .jsonl file, group of lines after group. Raises DataError for a line longer than MAX_LINE_BYTES.

    moved: see Lines.
    """
    seed = int.from_bytes(document.name_digest[:8], "little")
    line = 1
    with open_text(document.path) as file:
        while raw := file.read(BLOCK_BYTES):
            raw += file.readline(MAX_LINE_BYTES + 1)
            last_line = line + raw.count(b"\n", 0, -1)
            if len(raw) - 1 - raw.rfind(b"\n", 0, -1) > MAX_LINE_BYTES:
                raise DataError(
                    f"{document.path}, line {last_line}: the line is longer than {MAX_LINE_BYTES:,} "
                    "bytes; split its text into several lines, or write it to a text file of its own"
                )
            yield Lines(raw, str(document.path), document.kind, seed, line, moved)
            line = last_line + 1


def parse_lines(lines: Lines, options: LineOptions) -> Iterator[LineText]:
    """The document of each line that is not blank. Raises DataError, with the line's number, where there is none."""
    moved = dict(lines.moved)
    for number, line in enumerate(lines.raw.split(b"\n"), lines.first_line):
        line = line.removeprefix(BYTE_ORDER_MARK)
        if not line or line.isspace():
            continue
        record, replaced_bytes = decode(line)
        text = _field(record, options.field, f"{lines.path}, line {number}")
        raw, replaced_surrogates = _encode(text or "")
        split = moved.get(number) or split_of_line(lines.seed, number, options)
        yield LineText(split, number, raw, replaced_bytes, replaced_surrogates, text is None)


def split_of_line(seed: int, line: int, options: LineOptions) -> str:
    """Where a line belongs, by its number and its file's name (`seed`) alone."""
    position = (seed + line * _GOLDEN_STEP) % _WORD / _WORD
    if position < options.test_fraction:
        return "test"
    return "valid" if position < options.test_fraction + options.valid_fraction else "train"


def _field(line: str, field: str, where: str) -> str | None:
    try:
        record = read_record(line)
    except NotJSONError as error:
        raise DataError(f"{where}: this is no JSON ({error}); every line must be an object with text") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: this is {_type_name(record)}, not an object with the field {field!r}")
    if field not in record:
        names = [repr(name) for name in record]
        shown = ", ".join(names[:_FIELDS_SHOWN]) + (", …" if len(names) > _FIELDS_SHOWN else "") or "none"
        raise DataError(f"{where}: there is no field {field!r} (fields: {shown}); name the text's with --json-field")
    if not isinstance(record[field], str | None):
        kind = _type_name(record[field])
        raise DataError(f"{where}: the field {field!r} is {kind}, not a string; name the text's with --json-field")
    return record[field]


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def _encode(text: str) -> tuple[bytes, int]:
    """UTF-8, and how many halves of surrogate pairs, which JSON can escape one by one, became U+FFFD."""
    try:
        return text.encode(), 0
    except UnicodeEncodeError:
        text, replaced = _SURROGATES.subn("\ufffd", text)
        return text.encode(), replaced
