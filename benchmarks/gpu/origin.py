"""The commit of a tree where git is not at hand: noted beside the wheels, believed while the sources are those.

`python -m benchmarks.gpu.origin FILE` writes the note. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.sources import sources_digest
from megaselect.comparison.provenance import source_commit

NOTE = "origin.json"


def write(path: Path) -> None:
    """Note commit and digest of this tree."""
    path.write_text(json.dumps({"commit": source_commit(), "sources": sources_digest()}) + "\n")


def commit(folder: Path) -> str | None:
    """By git, else by the folder's note, if it is of these very sources; None where neither tells."""
    found = source_commit()
    if found:
        return found
    try:
        note = json.loads((folder / NOTE).read_text())
    except (OSError, ValueError):
        return None
    return note.get("commit") if note.get("sources") == sources_digest() else None


if __name__ == "__main__":
    write(Path(sys.argv[1]))
