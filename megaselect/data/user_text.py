"""A user's own text files, found and checked before anything is written."""

import os
from pathlib import Path
from typing import NoReturn

from megaselect.data.documents import Document
from megaselect.data.files import explain_os_errors
from megaselect.errors import DataError

# Text has no NUL bytes, and a binary file seldom lacks one so early; git looks there, too.
_BINARY_CHECK_BYTES = 8192


def collect_documents(inputs: list[Path]) -> tuple[list[Document], int]:
    """One document for each file, sorted by name, and the number of binary files that were passed over.

    In directories, hidden, empty and binary files are passed over; named outright, the latter two raise DataError.
    A file that several inputs reach counts once.
    """
    documents: dict[Path, Document] = {}
    num_binary = 0
    with explain_os_errors("read the input", "name text files, or directories of them, that can be read"):
        for root in inputs:
            for path in _files(root):
                kind = _kind(path)
                if kind == "text":
                    name = path.relative_to(root).as_posix() if path != root else path.name
                    documents[path.resolve()] = Document.whole(path, name)
                elif path == root:
                    raise DataError(f"the input {path} is {kind}; name text files in UTF-8, or a directory of them")
                num_binary += kind == "binary"
    if not documents:
        shown = ", ".join(map(str, inputs))
        raise DataError(f"the input {shown} holds no text; name text files in UTF-8, or a directory of them")
    return sorted(documents.values(), key=lambda document: document.name), num_binary


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


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_BINARY_CHECK_BYTES)
    if not head:
        return "empty"
    return "binary" if b"\0" in head else "text"
