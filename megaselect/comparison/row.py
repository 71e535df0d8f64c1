"""What a comparison needs of a row, whatever model it is of: what it is called, and what its processes do. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from megaselect.comparison.measurement import ModelJob, TrainJob
from megaselect.comparison.result import Setting


@dataclass(frozen=True)
class Rounds:
    """How often, and how long each time. snapshot_dir: where a GPU's memory snapshots go, if they are wanted."""

    rounds: int
    steps: int
    warmup_steps: int
    snapshot_dir: Path | None = None


class Row(Protocol):
    """A setting to run, or another library's recomputation beside it."""

    @property
    def name(self) -> str:
        """What it is called, in the table and by --settings."""

    @property
    def about(self) -> Setting:
        """What the result says of it, whether it trains or not."""

    @property
    def is_reference(self) -> bool:
        """Whether other rows of the same attention are compared with it."""

    def missing(self) -> str | None:
        """Why it is not worth trying; None where it is."""

    def job(self, plan: Rounds, number: int) -> TrainJob | ModelJob:
        """What its process of round `number`, from 1, does."""
