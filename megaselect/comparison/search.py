"""The largest micro-batch that trains, found by trying: doubled until memory is short, then narrowed down."""

from __future__ import annotations

from collections.abc import Sequence

MAX_TRIES = 20
RESOLUTION = 16  # narrowed down to 1/16 of the size


class MicroBatchSearch:
    """Says which size to try next, from `start` on, and remembers what came of it.

    largest: the largest size so far that trains, 0 where none does. beyond: why the smallest one that does not, does
    not.
    """

    def __init__(self, start: int) -> None:
        self.largest, self.beyond = 0, ""
        self._start, self._fails, self._tries = start, 0, 0

    def next_size(self) -> int | None:
        """The size to try, or None where the answer is known well enough."""
        if self._tries == MAX_TRIES:
            return None
        if not self._fails:
            return 2 * self.largest or self._start
        gap = self._fails - self.largest
        return None if gap <= max(self.largest // RESOLUTION, 1) else self.largest + gap // 2

    def record(self, size: int, why_not: str) -> None:
        """What came of trying `size`: why it does not train, or nothing."""
        self._tries += 1
        if why_not:
            self._fails, self.beyond = size, why_not
        else:
            self.largest = size


def search_after(start: int, outcomes: Sequence[tuple[int, str]]) -> MicroBatchSearch:
    """A search that goes on where `outcomes` end: sizes, and why they do not train, or nothing."""
    search = MicroBatchSearch(start)
    for size, why_not in outcomes:
        search.record(size, why_not)
    return search
