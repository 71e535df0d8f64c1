"""The console: a header, the bytes, a progress bar and a summary on a terminal; plain lines of 80 columns elsewhere."""

from __future__ import annotations

import atexit
import statistics
import sys
import textwrap
import time
from collections.abc import Mapping

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from megaselect.report import text
from megaselect.report.output import REPLACE_SIGNS, LossyOutput
from megaselect.report.stdout import stdout_console
from megaselect.training.events import Metrics, RunHeader, RunSummary, SavedReport

PANEL_COLUMNS = 100  # at most: lines across a very wide terminal are hard to read
REFRESH_SECONDS = 0.1
STEP_TIME_MEMORY = 0.9  # weight of the past in the step time that ETA is taken from
EVALUATION_SECONDS = 10  # between lines on an evaluation, where nothing can be redrawn
DATA_WAIT_STEPS = 20  # whose medians tell whether steps wait for data
DATA_WAIT_SHARE = 0.05  # of a step's time, from which a note is made of it
SAMPLE_INDENT = 2
STYLES = {"": "", "good": "green", "bad": "bold white on red"}


class ConsoleSink:
    """Prints a run. log_interval: steps between lines where the output is no terminal that can redraw.

    Where standard output fails the run goes on without it.
    """

    def __init__(self, log_interval: int, console: Console | None = None) -> None:
        self._console = console or stdout_console(LossyOutput(sys.stdout, sys.stderr))
        self._log_interval = log_interval
        self._max_steps = 0
        self._steps_timed = 0
        self._step_seconds = 0.0
        self._data_wait = _DataWait()
        self._progress: Progress | None = None
        self._drawn_at = 0.0
        self._evaluation_line_at = self._evaluation_began = 0.0

    def start(self, header: RunHeader) -> None:
        """Print the header and, on a terminal, start the progress bar."""
        self._max_steps = header.max_steps
        self._rows(f"megaselect {header.config_name}", text.header_rows(header))
        for note in header.notes:
            self.note(note)
        if header.config["training"]["compile"] and header.first_step < header.max_steps:
            self.note(text.COMPILE_NOTE)
        if self._console.is_interactive:
            self._start_bar(header)

    def identity(self) -> Mapping[str, str]:
        """The console knows no runs."""
        return {}

    def saved(self, report: SavedReport) -> None:
        """Print predicted and measured bytes, a loud warning where they differ."""
        for line in text.saved_lines(report):
            self._print(line.text, STYLES[line.style], line.indent)

    def step(self, metrics: Metrics) -> None:
        """Move the bar, or print a line every log_interval steps."""
        step = int(metrics["step"] or 0)
        self._average_step_time((metrics["step_ms"] or 0.0) / 1000)
        fields = text.step_fields(metrics, (self._max_steps - step) * self._step_seconds)
        if self._progress:
            self._move_bar(self._progress, step, fields)
        elif step % self._log_interval == 0 or step == self._max_steps:
            width = len(str(self._max_steps))
            place = f"step {step:>{width}}/{self._max_steps}"
            self._print(text.fitting([place, *fields], self._console.width))
        share = self._data_wait.update(metrics)
        if share is not None:
            self.note(text.data_wait_note(share))

    def evaluating(self, split: str, done: int, samples: int) -> None:
        """Show how far the evaluation is: in the bar, or in a line now and then where it takes long."""
        now = time.monotonic()
        if not done:
            self._evaluation_began = self._evaluation_line_at = now
            self._drawn_at = 0.0  # at once: the next call may be long in coming
        left = (now - self._evaluation_began) / done * (samples - done) if done else None
        fields = text.evaluation_fields(split, done, samples, left)
        if self._progress:
            self._move_bar(self._progress, None, fields)
        elif now - self._evaluation_line_at >= EVALUATION_SECONDS:
            self._evaluation_line_at = now
            self._print(text.fitting(fields, self._console.width))

    def evaluation(self, step: int, loss: float) -> None:
        """Print a line."""
        width = len(str(self._max_steps))
        self._print(f"eval {step:>{width}}/{self._max_steps}  valid loss {loss:.4f}", "cyan")

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._print(text, indent=2)

    def finish(self, summary: RunSummary) -> None:
        """Close the bar, then print the summary and the sample text."""
        self._stop_bar()
        self._rows(text.summary_title(summary), text.summary_rows(summary))
        if summary.sample is not None:
            self._sample(summary.sample)

    def fail(self, reason: str) -> None:
        """Close the bar; whoever hears of the error says what it was."""
        self._stop_bar()

    def _average_step_time(self, seconds: float) -> None:
        # The first step also compiles and warms up: the second one's time takes its place.
        past = seconds if self._steps_timed < 2 else self._step_seconds
        self._step_seconds = STEP_TIME_MEMORY * past + (1 - STEP_TIME_MEMORY) * seconds
        self._steps_timed += 1

    def _rows(self, title: str, rows: list[tuple[str, str]]) -> None:
        """A panel on a terminal, labelled lines elsewhere."""
        width = max(len(label) for label, _ in rows)
        if not self._console.is_terminal:
            self._print(title)
            for label, value in rows:
                self._print(f"  {label:<{width}}  {value}", indent=width + 4)
            return
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, value in rows:
            grid.add_row(label, Text(self._printable(value), "" if label else "italic"))
        panel_width = min(self._console.width, PANEL_COLUMNS)
        title_text = Text(self._printable(title), "bold")
        self._console.print(Panel(grid, title=title_text, title_align="left", width=panel_width, border_style="blue"))

    def _sample(self, sample: str) -> None:
        """Set in below its title, folded where a line is too long."""
        self._print(text.SAMPLE_TITLE, "bold")
        for line in text.sample_lines(self._printable(sample)):
            for part in Text(line).wrap(self._console, self._console.width - SAMPLE_INDENT, overflow="fold"):
                self._console.print(Text((" " * SAMPLE_INDENT + part.plain).rstrip()), soft_wrap=True)

    def _print(self, content: str, style: str = "", indent: int = 0) -> None:
        """Print text wrapped at spaces; a path or command that is longer than a line stays whole."""
        for paragraph in self._printable(content).splitlines():
            lines = textwrap.wrap(
                paragraph,
                self._console.width,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for line in lines:
                self._console.print(Text(line, style), soft_wrap=True)

    def _printable(self, content: str) -> str:
        """Without control characters and without what the output cannot encode."""
        return (
            text.without_controls(content).encode(self._console.encoding, REPLACE_SIGNS).decode(self._console.encoding)
        )

    def _start_bar(self, header: RunHeader) -> None:
        columns = (
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[status]}", markup=False),
        )
        # No thread of its own that redraws: it would take time from the training step. Errors are printed above the
        # bar, unless they go to a file.
        self._progress = Progress(
            *columns,
            console=self._console,
            auto_refresh=False,
            expand=True,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._progress.add_task("", total=header.max_steps, completed=header.first_step, status="first step ...")
        self._progress.start()
        # A run that ends by an error never gets to finish; the terminal must have its cursor back all the same.
        atexit.register(self._progress.stop)

    def _move_bar(self, bar: Progress, step: int | None, fields: list[str]) -> None:
        """step: None stays where the bar is."""
        bar_columns = max(self._console.width // 8, 10)  # at least
        place_columns = 2 * len(str(self._max_steps)) + 3
        status = text.fitting(fields, self._console.width - bar_columns - place_columns)
        bar.update(bar.task_ids[0], completed=step, status=status)
        now = time.monotonic()
        if now - self._drawn_at >= REFRESH_SECONDS:
            self._drawn_at = now
            bar.refresh()

    def _stop_bar(self) -> None:
        if self._progress:
            self._progress.stop()
            atexit.unregister(self._progress.stop)
            self._progress = None


class _DataWait:
    """Notices, once in a run, that steps wait for data."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._told = False

    def update(self, metrics: Metrics) -> float | None:
        """The share of a step's time, at the end of some steps in which it is too large, the first time."""
        waited, step_ms = metrics.get("data_ms"), metrics["step_ms"]
        if self._told or waited is None or step_ms is None:
            return None
        self._spans.append((waited, step_ms))
        if len(self._spans) < DATA_WAIT_STEPS:
            return None
        typical_wait, typical_step = (statistics.median(spans) for spans in zip(*self._spans, strict=True))
        self._spans.clear()
        self._told = typical_wait > DATA_WAIT_SHARE * typical_step
        return typical_wait / typical_step if self._told else None
