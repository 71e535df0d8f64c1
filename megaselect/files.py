"""Files that are either whole or absent, and locks that the system takes back from a process that ends. No torch."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process uses, not even one with our pid in another container."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")


def publish(partial: Path, path: Path) -> None:
    """Flush `partial` to disk and give it its real name, replacing what was there in one step. Raises OSError."""
    sync(partial)
    partial.replace(path)


def write_atomically(path: Path, content: bytes) -> None:
    """The file holds its old content or all of the new, whenever the process ends. Raises OSError."""
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Ask the disk to have a file or directory, so that a rename cannot outlive what it names. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(handle: int, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed or the process ends, however it ends.

    False: another process holds it. None: the file system has no locks. Raises OSError.
    """
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True
