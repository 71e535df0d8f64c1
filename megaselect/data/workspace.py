"""PREFIX.partial/: what an interrupted preparation has done, for the same command to go on from."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megaselect.data.progress import PrepareProgress
from megaselect.errors import DataError
from megaselect.files import try_lock, write_atomically

_REQUEST = "request.json"
_LOCK = "lock"
_PROGRESS = "progress.json"
RECORD = "record.json"  # of a preparation that only has to be published


class PreparationStopped(DataError):
    """What stopped a preparation is no fault of the input's: the same command goes on from where it was."""


class Workspace:
    """Files in the directory, each written whole or, by whoever appends to it, up to what `progress` says."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def progress(self) -> dict[str, Any] | None:
        """What was saved last, or None."""
        return self.read(_PROGRESS)

    def save_progress(self, progress: dict[str, Any]) -> None:
        """Replace it, in one step."""
        write_atomically(self.path / _PROGRESS, json.dumps(progress).encode())

    def read(self, name: str) -> dict[str, Any] | None:
        """Content of a JSON file, or None where there is none."""
        try:
            return json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None

    def remember(self, name: str, compute: Callable[[], bytes]) -> bytes:
        """Content of a file, computed only where an earlier call has not."""
        path = self.path / name
        if not path.exists():
            write_atomically(path, compute())
        return path.read_bytes()

    def begin(self, request: dict[str, Any], progress: PrepareProgress) -> None:
        """Keep what is here for the same request, and remove what is here for another one."""
        earlier = self.read(_REQUEST)
        if earlier == request:
            return
        if earlier is not None:
            changed = ", ".join(key for key in request if earlier.get(key) != request[key])
            progress.note(f"{self.path} holds the beginning of a preparation with another {changed}: starting anew.")
        for path in self.path.iterdir():
            if path.name != _LOCK:
                path.unlink()
        write_atomically(self.path / _REQUEST, json.dumps(request).encode())

    def refuse_foreign(self) -> None:
        """Raise DataError for a directory that some other program filled."""
        own = (self.path / _REQUEST).exists()
        if not own and any(path.name != _LOCK and not path.name.startswith(".") for path in self.path.iterdir()):
            raise DataError(
                f"{self.path} is where a preparation keeps its work, but its files are not a preparation's; "
                "move them away, or choose another output prefix"
            )

    def remove(self) -> None:
        """Remove the directory, the record late: a call that finds it knows that nothing is left to be done."""
        last = (RECORD, _REQUEST, _LOCK)
        for path in sorted(self.path.iterdir(), key=lambda path: path.name in last and 1 + last.index(path.name)):
            path.unlink()
        self.path.rmdir()


@contextmanager
def open_workspace(prefix: Path, request: dict[str, Any], progress: PrepareProgress) -> Iterator[Workspace]:
    """PREFIX.partial/, for one process at a time.

    request: what the result depends on, as JSON has it.
    After success, and after an error in the input, the directory is removed. After anything else it stays, once there
    is progress in it.
    """
    workspace = Workspace(Path(f"{prefix}.partial"))
    workspace.path.mkdir(parents=True, exist_ok=True)
    workspace.refuse_foreign()
    with _locked(workspace.path):
        try:
            workspace.begin(request, progress)
            yield workspace
        except BaseException as error:
            of_the_input = isinstance(error, DataError) and not isinstance(error, PreparationStopped)
            if of_the_input or workspace.progress is None:
                shutil.rmtree(workspace.path, ignore_errors=True)
            else:
                progress.note(f"What was done is kept in {workspace.path}: the same command goes on from there.")
            raise
        workspace.remove()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT)
    try:
        if try_lock(lock) is False:  # on a file system without locks two at a time are not noticed
            raise DataError(f"another process is at work in {directory}; wait for it, or choose another output prefix")
        yield
    finally:
        os.close(lock)
