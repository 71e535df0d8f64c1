"""A training run as TensorBoard's event files, under the names that Weights & Biases knows too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml
from torch.utils.tensorboard import SummaryWriter

from megaselect.report.wandb_names import columns
from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport


class TensorBoardSink:
    """Writes run_dir/tensorboard, flushed every step; values over steps. Training goes on where writing fails.

    A resumed run's file tells TensorBoard to forget the steps after the checkpoint that earlier files hold. TensorBoard
    keeps values as 32-bit floats.
    """

    def __init__(self, run_dir: str | Path, note: Callable[[str], None]) -> None:
        self._folder = Path(run_dir) / "tensorboard"
        self._note = note
        self._writer: SummaryWriter | None = None

    def start(self, header: RunHeader) -> None:
        """Open a file, with the config, that takes the place of what earlier files hold from the next step on."""
        with self._guarded():
            self._writer = SummaryWriter(str(self._folder), purge_step=header.first_step + 1)
        config = yaml.safe_dump(header.config, sort_keys=False)
        self._write_text("config", "    " + config.replace("\n", "\n    "), header.first_step + 1)

    def identity(self) -> Mapping[str, str]:
        """The run directory is all that tells runs apart."""
        return {}

    def saved(self, report: SavedReport) -> None:
        """The saved bytes are among the metrics of each step."""

    def step(self, metrics: Metrics) -> None:
        """Write what is known of one step."""
        row = columns(metrics)
        step = int(row.pop("step"))
        self._write(row, step)

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """Progress is for the console."""

    def evaluation(self, step: int, loss: float) -> None:
        """Write the validation loss."""
        self._write({"eval/loss": loss}, step)

    def note(self, text: str) -> None:
        """Notes are for the console."""

    def finish(self, summary: RunSummary) -> None:
        """Write what is known at the end, and close the file."""
        if summary.test_loss is not None:
            self._write({"eval/test_loss": summary.test_loss}, summary.steps)
        if summary.sample is not None:
            self._write_text("sample", summary.sample, summary.steps)
        self._close()

    def fail(self, reason: str) -> None:
        """All steps are on the disk already."""
        self._close()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            with self._guarded():
                for name, value in values.items():
                    self._writer.add_scalar(name, value, step)
                self._writer.flush()  # a killed process leaves what was flushed

    def _write_text(self, name: str, text: str, step: int) -> None:
        if self._writer is not None:
            with self._guarded():
                self._writer.add_text(name, text, step)

    def _close(self) -> None:
        if self._writer is not None:
            with self._guarded():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """A failure inside ends the writing, with one note, and never the training, which does not depend on it."""
        try:
            yield
        except Exception as error:
            self._writer = None
            self._note(f"tensorboard: {error or type(error).__name__}; training goes on without it")
