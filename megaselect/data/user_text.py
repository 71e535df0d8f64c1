"""A user's own text files, found and checked before anything is written."""

import codecs
import os
from collections import deque
from pathlib import Path
from typing import NamedTuple, NoReturn

from megaselect.data.compressed import open_text
from megaselect.data.file_kinds import file_kind
from megaselect.data.os_errors import explain_os_errors
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


def find_files(inputs: list[Path], json_field: str = "text", json_files: str = "auto") -> tuple[list[TextFile], int]:
    """Text files, sorted by name, and the number of binary files that were passed over. json_files: see file_kinds.

    In directories, hidden, empty and binary files are passed over, and those in UTF-16 and UTF-32, which count as
    binary. All but hidden ones raise DataError where they are named outright, as do compressed files that are damaged.
    A file that several inputs reach counts once. Links are followed, to files and to directories, and each directory
    is read once, so that links to what they lie in do no harm.
    """
    files: dict[Path, TextFile] = {}
    num_binary = 0
    with explain_os_errors("read the input", "name text files, or directories of them, that can be read"):
        for root in inputs:
            for path in _files(root):
                content = _content(path)
                if content == "text":
                    name = path.relative_to(root).as_posix() if path != root else path.name
                    real = path.resolve()
                    if real not in files:
                        files[real] = TextFile(name, path, file_kind(path, json_field, json_files))
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


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    seen: set[Path] = set()
    # What lies in the directory comes before what it links to, and has the name that it has there.
    roots = deque([root])
    while roots:
        for directory, subdirectories, names in os.walk(roots.popleft(), onerror=_refuse):
            here = Path(directory)
            if here.resolve() in seen:
                subdirectories.clear()
                continue
            seen.add(here.resolve())
            shown = sorted(name for name in subdirectories if not name.startswith("."))
            roots += [here / name for name in shown if (here / name).is_symlink()]
            subdirectories[:] = [name for name in shown if not (here / name).is_symlink()]
            found += [here / name for name in names if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: (path.is_symlink(), path))


def _refuse(error: OSError) -> NoReturn:
    raise error


def _content(path: Path) -> str:
    with open_text(path) as file:
        head = file.read(_BINARY_CHECK_BYTES)
    if not head:
        return "empty"
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    return encoding or ("binary" if b"\0" in head else "text")
