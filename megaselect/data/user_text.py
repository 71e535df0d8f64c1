"""A user's own text files, found and checked before anything is written."""

import codecs
import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from megaselect.data.compressed import SUFFIXES, open_text
from megaselect.data.files import explain_os_errors
from megaselect.errors import DataError

# How files in other encodings of Unicode begin; UTF-16's mark is the beginning of UTF-32's.
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# Text has no NUL bytes, and a binary file seldom lacks one so early; git looks there, too.
_BINARY_CHECK_BYTES = 8192


class TextFile(NamedTuple):
    """name, path and kind as in documents.Document."""

    name: str
    path: Path
    kind: str


def find_files(inputs: list[Path]) -> tuple[list[TextFile], int]:
    """Text files, sorted by name, and the number of binary files that were passed over.

    In directories, hidden, empty and binary files are passed over, and those in UTF-16 and UTF-32, which count as
    binary. All but hidden ones raise DataError where they are named outright, as do compressed files that are damaged.
    A file that several inputs reach counts once.
    """
    files: dict[Path, TextFile] = {}
    num_binary = 0
    with explain_os_errors("read the input", "name text files, or directories of them, that can be read"):
        for root in inputs:
            for path in _files(root):
                content = _content(path)
                if content == "text":
                    name = path.relative_to(root).as_posix() if path != root else path.name
                    files[path.resolve()] = TextFile(name, path, _kind(path))
                elif path == root:
                    raise DataError(f"the input {path} is {content}; {_remedy(content)}")
                num_binary += content not in ("text", "empty")
    if not files:
        shown = ", ".join(map(str, inputs))
        raise DataError(f"the input {shown} holds no text; name text files in UTF-8, or a directory of them")
    return sorted(files.values(), key=lambda file: file.name), num_binary


def _remedy(content: str) -> str:
    if content in _MARKS.values():
        return f"convert it to UTF-8 (iconv -f {content} -t UTF-8)"
    return "name text files in UTF-8, or a directory of them"


def _kind(path: Path) -> str:
    name = path.name.lower()
    compression = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
    return ("jsonl" if name.removesuffix(compression).endswith(".jsonl") else "text") + compression


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    found = []
    for directory, subdirectories, names in os.walk(root, onerror=_refuse):
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found += [Path(directory, name) for name in names if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _refuse(error: OSError) -> NoReturn:
    raise error


def _content(path: Path) -> str:
    with open_text(path) as file:
        head = file.read(_BINARY_CHECK_BYTES)
    if not head:
        return "empty"
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return encoding or ("binary" if b"\0" in head else "text")
