"""The directory of a run: found or made, and locked before anything in it is read or changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.config import Config, RecomputeConfig
from megaselect.errors import RunDirectoryError
from megaselect.files import write_atomically
from megaselect.training.metrics_file import METRICS_NAME
from megaselect.training.run_lock import RunLock
from megaselect.training.run_record import RECORD_NAME, RunRecord, Segment, set_damaged_aside

if TYPE_CHECKING:
    from megaselect.data.tokenizer import Tokenizer

CONFIG_NAME, TOKENIZER_NAME = "config.yaml", "tokenizer.model"
# By any of these a directory is known to be a run's.
_MARKS = (RECORD_NAME, METRICS_NAME, "checkpoints")


@dataclass
class RunDir:
    """A directory that is locked for this run. accepted: whether the run has begun to write into it."""

    path: Path
    notes: list[str] = field(default_factory=list)
    accepted: bool = False

    @contextmanager
    def recorded(self, config: Config, segment: Segment, note: Callable[[str], None]) -> Iterator[RunRecord]:
        """The run goes on here: write config.yaml, and keep run.json while inside. Raises RunDirectoryError."""
        with _explained(self.path):
            self.notes += set_damaged_aside(self.path)
        record = RunRecord(self.path, segment, note)
        with _explained(self.path):
            self._remove_leftovers()
            record.begin()
        self.accepted = True
        with record:
            with _explained(self.path):
                write_atomically(self.path / CONFIG_NAME, config.to_yaml().encode())
            yield record

    def keep_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """A copy of its model file: what the ids of the run's model mean hangs on no file elsewhere."""
        if tokenizer:
            with _explained(self.path):
                write_atomically(self.path / TOKENIZER_NAME, tokenizer.model_file)

    def _remove_leftovers(self) -> None:
        """What a run that was killed in this place left half written."""
        for name in (RECORD_NAME, CONFIG_NAME, TOKENIZER_NAME):
            for partial in self.path.glob(f".{name}.*.partial"):
                partial.unlink()


@contextmanager
def claim_run_dir(config: Config, config_name: str, known: str | None = None) -> Iterator[RunDir]:
    """The run's directory, locked while inside; where the run was refused before it began, as if it had not been.

    A run that names no directory gets `known`, which it had before, or a new one in runs/. Raises RunDirectoryError
    where another run holds it, it cannot be written, or its config.yaml is nobody's run.
    """
    named = config.training.run_dir or known
    path = Path(named) if named else _fresh_path(config.recompute, config_name)
    with _explained(path):
        made = _make(path) if named else _make_fresh(path)
        path = made[0] if made else path
        try:
            lock = RunLock(path)
        except BaseException:
            _remove(made)
            raise
    home = RunDir(path, [lock.note] if lock.note else [])
    try:
        _refuse_foreign(path)
        yield home
    finally:
        lock.release(remove=lock.is_new and not home.accepted)
        if not home.accepted:
            _remove(made)


def _fresh_path(recompute: RecomputeConfig, config_name: str) -> Path:
    """Named by config, mode and moment, so that modes can be compared side by side."""
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{Path(config_name).stem}-{recompute.mode}-{moment}"


def _make(path: Path) -> list[Path]:
    """The directories that were made, innermost first."""
    missing = []
    for place in (path, *path.parents):
        if place.exists():
            break
        missing.append(place)
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _make_fresh(path: Path) -> list[Path]:
    """The same, for a directory that nobody else has: another run may begin in the same second."""
    made = _make(path.parent)
    for number in count(1):
        own = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            own.mkdir()
            return [own, *made]
    raise AssertionError("there is always a next number")


def _remove(made: list[Path]) -> None:
    """What others have put something into stays."""
    with contextlib.suppress(OSError):
        for path in made:
            path.rmdir()


def _refuse_foreign(path: Path) -> None:
    config = path / CONFIG_NAME
    if config.exists() and not any((path / mark).exists() for mark in _MARKS):
        raise RunDirectoryError(
            f"{config} is there and no run beside it: the run would overwrite it; choose another --run-dir, or move "
            "the file away"
        )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"cannot write to the run directory {path}: {error.strerror}; choose another --run-dir"
        ) from error
