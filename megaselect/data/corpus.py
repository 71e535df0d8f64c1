"""The default corpus: the sources of the running Python's own standard library. Nothing is downloaded.

About 10 MB of code and English prose, there wherever Megaselect runs, the same for everyone with the same Python.
"""

import os
import platform
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from megaselect.data.documents import Document, manifest_sha256
from megaselect.errors import DataError

# Tests and tables of character codes are repetitive; packages that were installed later differ from machine to machine.
_EXCLUDED_DIRECTORIES = {
    *("test", "tests", "idle_test", "idlelib", "lib2to3", "encodings"),
    *("site-packages", "dist-packages", "__pycache__", "_bundled"),
}
# How this Python was built: generated, full of the builder's paths.
_EXCLUDED_PREFIXES = ("config-", "_sysconfigdata")

_MIN_BYTES = 2_000_000
_REMEDY = "set data.prefix to a dataset of your own, written by `megaselect data prepare`"


@dataclass(frozen=True, slots=True)
class Corpus:
    documents: list[Document]
    sha256: str  # as documents.manifest_sha256 defines it
    description: str


def default_corpus(root: Path | None = None) -> Corpus:
    """Sources of the standard library at `root` (the running Python's), sorted by path; all of them are read (0.03 s).

    Empty files and files that are not UTF-8 are left out. Raises DataError where the library is not there as files.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    paths = sorted(_source_files(root), key=lambda path: path.relative_to(root).as_posix())
    documents = [Document.whole(path, path.relative_to(root).as_posix()) for path in paths if _is_text(path)]
    num_bytes = sum(document.num_bytes for document in documents)
    if num_bytes < _MIN_BYTES:
        raise DataError(
            f"the default corpus is Python's standard library, but {root} holds only {num_bytes:,} bytes of sources "
            f"(zipped or stripped); {_REMEDY}"
        )
    version = platform.python_version()
    description = f"Python {version} standard library, {len(documents)} files, {num_bytes / 1e6:.1f} MB"
    return Corpus(documents, manifest_sha256(documents), description)


def _source_files(root: Path) -> list[Path]:
    found = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if not _is_excluded(name)]
        found += [Path(directory, name) for name in names if name.endswith(".py") and not _is_excluded(name)]
    return found


def _is_excluded(name: str) -> bool:
    return name in _EXCLUDED_DIRECTORIES or name.startswith(_EXCLUDED_PREFIXES)


def _is_text(path: Path) -> bool:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return len(content) > 0
