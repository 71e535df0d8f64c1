"""One run a directory: a lock that the kernel takes back when its process ends, however it ends.

    RUN/.lock     locked by flock while a run goes on; its text says which process that is

A file that is left over is not locked, so a killed run needs no tidying. Over NFS Linux hands the lock to the server,
where it also holds between machines, unless the directory is mounted with nolock or local_lock: then it holds between
the processes of one machine.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from megaselect.errors import RunDirectoryError

LOCK_NAME = ".lock"
# `megaselect runs` holds a lock for an instant to see whether a run does; a run that starts just then tries again.
_ATTEMPTS, _PAUSE_SECONDS = 10, 0.02
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


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
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if attempt == _ATTEMPTS:
                    raise RunDirectoryError(_in_use(self._path)) from None
                time.sleep(_PAUSE_SECONDS)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                self.note = (
                    f"note: the file system of {self._path.parent} has no locks ({error.strerror}): see to it that no "
                    "other run uses this directory"
                )
                return

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
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError) as error:
        return isinstance(error, BlockingIOError)
    except OSError:
        return None
    return False


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
