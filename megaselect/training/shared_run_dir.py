"""One run directory for many ranks: the first keeps it, the others write into it nothing but their checkpoint files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from megaselect.config import Config
from megaselect.distributed.ranks import Ranks
from megaselect.errors import RunDirectoryError
from megaselect.training.run_dir import RunDir, claim_run_dir
from megaselect.training.run_lock import LOCK_NAME
from megaselect.training.run_record import RunRecord, Segment

if TYPE_CHECKING:
    from megaselect.data.tokenizer import Tokenizer

_RUN_DIR = "run directory"  # its key in what lasts from one start to the next
_SEEN_SECONDS = 10.0  # that a file takes at most to show up on other machines


@contextmanager
def shared_run_dir(config: Config, config_name: str, ranks: Ranks) -> Iterator[RunDir]:
    """What the first rank claims, for all of them; the others write into it nothing of their own.

    Where torchrun starts the ranks again, and the config names no directory, it is the one of their first start. Raises
    RunDirectoryError where it cannot be had, or a rank does not see it.
    """
    with _claimed(config, config_name, ranks) if ranks.is_first else contextlib.nullcontext() as home:
        path = Path(ranks.from_first(str(home.path) if home else ""))
        sees = ranks.gather_values(_sees_lock(path))
        if not all(sees):
            raise RunDirectoryError(
                f"rank {sees.index(False)} does not see the run directory {path}: all ranks need one file system; "
                "choose another --run-dir"
            )
        yield home or FollowedRunDir(path)


@contextmanager
def _claimed(config: Config, config_name: str, ranks: Ranks) -> Iterator[RunDir]:
    if ranks.lasting and not config.training.run_dir:
        with claim_run_dir(config, config_name, ranks.lasting.find(_RUN_DIR)) as home:
            ranks.lasting.post(_RUN_DIR, str(home.path))
            yield home
    else:
        with claim_run_dir(config, config_name) as home:
            yield home


class FollowedRunDir(RunDir):
    """A directory that another rank keeps."""

    @contextmanager
    def recorded(self, config: Config, segment: Segment, note: Callable[[str], None]) -> Iterator[RunRecord]:
        """The record is the first rank's: nothing is written."""
        yield RunRecord(self.path, segment, note)

    def keep_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """The first rank does."""


def _sees_lock(path: Path) -> bool:
    """Over a network it may take a moment."""
    deadline = time.monotonic() + _SEEN_SECONDS
    while not (path / LOCK_NAME).exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True
