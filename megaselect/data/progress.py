"""What a long preparation tells about itself while it runs."""

from typing import Protocol


class PrepareProgress(Protocol):
    """Draws the progress of stages that follow each other. All sizes are in bytes of the input."""

    def stage(self, name: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Another stage begins, `done_bytes` of which an earlier, interrupted call has done."""

    def advance(self, num_bytes: int) -> None:
        """That much more of the stage is done."""

    def note(self, text: str) -> None:
        """A sentence that the user should read."""


class NoProgress:
    """Tells nobody."""

    def stage(self, name: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Ignored."""

    def advance(self, num_bytes: int) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
