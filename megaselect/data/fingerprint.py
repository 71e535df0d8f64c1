"""What tells that the data under a name is no longer what it was, by reads of a bounded size."""

import hashlib
from pathlib import Path
from typing import Any

from megaselect.data.blend import BlendedSource, DataSource

_EDGE_BYTES = 64 * 1024


def fingerprint(source: DataSource) -> str:
    """16 hexadecimal digits that change with the tokens, their order, the split's bounds or the weights of a blend.

    Not with names, places and times of files. Of each .bin and .idx, the size and the first and last 64 KiB are read: a
    dataset that was written again from other text is noticed, and a single token changed in its middle is not.
    """
    hashed = hashlib.sha256()
    if isinstance(source, BlendedSource):
        for quota, each in zip(source.pattern.quotas, source.sources, strict=True):
            hashed.update(f"{quota} {fingerprint(each)}\n".encode())
    else:
        hashed.update(f"{source.part}\n".encode())
        for suffix in (".idx", ".bin"):
            _add_file(hashed, Path(f"{source.prefix}{suffix}"))
    return hashed.hexdigest()[:16]


def _add_file(hashed: Any, path: Path) -> None:
    with path.open("rb") as file:
        size = path.stat().st_size
        hashed.update(f"{size}\n".encode())
        hashed.update(file.read(_EDGE_BYTES))
        file.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
        hashed.update(file.read(_EDGE_BYTES))
