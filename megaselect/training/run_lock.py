"""One run a directory: a lock that the kernel takes back when its process ends, however it ends.

    RUN/.lock     locked by flock while a run goes on; its text says which process that is

A file that is left over is not locked, so a killed run needs no tidying. Over NFS Linux hands the lock to the server,
where it also holds between machines, unless the directory is mounted with nolock or local_lock: then it holds between
the processes of one machine.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from megaselect.errors import RunDirectoryError
from megaselect.files import try_lock

LOCK_NAME = ".lock"
# `megaselect runs` holds a lock for an instant to see whether a run does; a run that starts just then tries again.
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.02


class RunLock:
    """Held from its making to release().

    Raises RunDirectoryError, which names the other process, where a run holds it, and OSError where the directory
    cannot be written. is_new: whether no run was here before. note: what to tell the user where the file system has no
    locks; the run goes on without one.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / LOCK_NAME
        self.note: str | None = None
        self._handle = self._take()
        self.is_new = os.fstat(self._handle).st_size == 0
        self._say_who()

    def release(self, remove: bool = False) -> None:
        """Let others have the directory. remove: delete the file too, first, so that nobody is left holding it."""
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._handle)

    def _take(self) -> int:
        while True:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._lock(handle)
                if _is_at(handle, self._path):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # its holder removed the file while this process opened it: a lock on nothing

    def _lock(self, handle: int) -> None:
        for _ in range(_ATTEMPTS):
            locked = try_lock(handle)
            if locked is None:
                self.note = (
                    f"note: the file system of {self._path.parent} has no locks: see to it that no other run uses this "
                    "directory"
                )
            if locked is not False:
                return
            time.sleep(_PAUSE_SECONDS)
        raise RunDirectoryError(_in_use(self._path))

    def _say_who(self) -> None:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}).encode() + b"\n"
        try:
            os.pwrite(self._handle, text, 0)
            os.ftruncate(self._handle, len(text))
        except OSError:
            self.release(remove=self.is_new)
            raise


def is_locked(run_dir: Path) -> bool | None:
    """Whether a run holds the directory now; None where that cannot be told."""
    try:
        with (run_dir / LOCK_NAME).open("rb") as file:
            locked = try_lock(file.fileno(), shared=True)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return None if locked is None else not locked


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _in_use(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        who = f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"the run directory {path.parent} is in use by {who}: wait for it, stop it, or choose another --run-dir"
