"""The history of the GPU's allocator over the first steps, for https://pytorch.org/memory_viz."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megaselect.compatibility import MemoryHistory

SNAPSHOT_STEPS = 3  # the first one also sets up what later ones reuse
MAX_EVENTS = 1_000_000  # allocations and frees that the history holds; older ones make way


class MemorySnapshot:
    """Records from its making on; SNAPSHOT_STEPS steps later, or where the run ends before that, writes the history.

    The file is RUN/memory/steps-FIRST-LAST.pickle: of a step that ran out of memory too. note: tells where it is, or
    that it could not be written.
    """

    def __init__(self, run_dir: Path, note: Callable[[str], None]) -> None:
        self._home, self._note = run_dir / "memory", note
        self._taken: list[int] = []
        self._recording = True
        MemoryHistory.start(max_entries=MAX_EVENTS)

    def step_begins(self, number: int) -> None:
        """Step `number` is about to be taken."""
        if len(self._taken) == SNAPSHOT_STEPS:
            self.close()
        if self._recording:
            self._taken.append(number)

    def close(self) -> None:
        """Write what was recorded and not yet written, and record no more."""
        if self._recording and self._taken:
            path = self._home / f"steps-{self._taken[0]}-{self._taken[-1]}.pickle"
            try:
                self._home.mkdir(parents=True, exist_ok=True)
                MemoryHistory.dump(str(path))
                self._note(f"memory snapshot: {path}, for pytorch.org/memory_viz")
            except OSError as error:
                self._note(f"memory snapshot: cannot write {path}: {error.strerror}")
        if self._recording:
            self._recording = False
            MemoryHistory.stop()
