"""Files that are either whole or absent: written under another name, flushed to disk, then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaselect.errors import DataError


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process uses, not even one with our pid in another container."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def publish(partial: Path, path: Path) -> None:
    """Flush `partial` to disk and give it its real name, replacing what was there in one step."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def explain_os_errors(task: str, remedy: str, kind: type[DataError] = DataError) -> Iterator[None]:
    """Turn what the operating system refuses inside the block into one line of a DataError, of `kind` if need be."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename is not None else ""
        raise kind(f"cannot {task}: {error.strerror}{where}; {remedy}") from error
