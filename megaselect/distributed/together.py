"""What one rank finds out in the middle of a step and all have to follow, though they cannot be asked there."""

from __future__ import annotations

from typing import Any


class BeginAgain(Exception):
    """The ranks part and meet again, to go on from the last checkpoint with other settings. Raised on every rank.

    settings: section of the config -> values that take the place of its own, which JSON can hold. reason: a sentence.
    """

    def __init__(self, settings: dict[str, dict[str, Any]], reason: str) -> None:
        super().__init__(reason)
        self.settings, self.reason = settings, reason
