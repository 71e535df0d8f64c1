"""Where ranks leave notes for each other without meeting in a collective, as threads beside the training can."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

_PAUSE_SECONDS = 0.02


class LostRank(Exception):
    """Another rank was not there in time, or has ended."""


class Board:
    """Notes in a store that ranks share, by key: what JSON can hold. seconds: after which whoever waits gives up."""

    def __init__(self, store: dist.Store, seconds: float) -> None:
        self._store, self._seconds = store, seconds

    def post(self, key: str, note: Any) -> None:
        """Leave a note."""
        self._store.set(key, json.dumps(note))

    def find(self, key: str) -> Any:
        """The note; None where there is none yet."""
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def read(self, key: str, goes_on: Callable[[], bool]) -> Any:
        """The note, when it is there. Raises LostRank where it does not come in time, or goes_on() says no."""
        deadline = time.monotonic() + self._seconds
        while not self._store.check([key]):
            gives_up = time.monotonic() >= deadline or not goes_on()
            if gives_up and not self._store.check([key]):  # it may have come before its rank ended
                raise LostRank(f"no rank has left {key} in time")
            time.sleep(_PAUSE_SECONDS)
        return json.loads(self._store.get(key))

    def remove(self, key: str) -> None:
        """Make room: nobody reads it any more."""
        self._store.delete_key(key)
