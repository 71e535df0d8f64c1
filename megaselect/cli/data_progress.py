"""The progress of a preparation: a bar on a terminal, a line now and then elsewhere."""

import shutil
import sys
import textwrap
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

PLAIN_COLUMNS = 80
REFRESH_SECONDS = 0.1
LINE_SECONDS = 10.0

_TITLES = {"reading": "reading the input", "tokenizer": "training the tokenizer", "tokens": "encoding"}


class ProgressDisplay:
    """A PrepareProgress that draws on standard output. As a context manager it gives the terminal back at the end."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            # No thread of its own that redraws: processes are started meanwhile.
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(force_terminal=True),
                auto_refresh=False,
                transient=True,
            )
        self._title = ""
        self._total = self._done = self._first = 0
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def stage(self, name: str, total_bytes: int, done_bytes: int = 0) -> None:
        """See PrepareProgress."""
        self._title = _TITLES[name]
        self._total, self._done, self._first = total_bytes, done_bytes, done_bytes
        self._started = time.monotonic()
        if self._bar:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(self._title, total=total_bytes or None, completed=done_bytes)
            self._bar.refresh()
        elif time.monotonic() - self._shown >= LINE_SECONDS:
            self._line()

    def advance(self, num_bytes: int) -> None:
        """See PrepareProgress."""
        self._done += num_bytes
        elapsed = time.monotonic() - self._shown
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], num_bytes)
            if elapsed >= REFRESH_SECONDS:
                self._shown = time.monotonic()
                self._bar.refresh()
        elif elapsed >= LINE_SECONDS:
            self._line()

    def note(self, text: str) -> None:
        """See PrepareProgress."""
        columns = shutil.get_terminal_size().columns if self._bar else PLAIN_COLUMNS
        lines = textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
        if self._bar:
            self._bar.console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        else:
            print("\n".join(lines), flush=True)

    def _line(self) -> None:
        now = self._shown = time.monotonic()
        done = self._done - self._first
        if not self._total or not done:
            print(f"{self._title} ...", flush=True)
            return
        rate = done / (now - self._started)  # bytes a second
        left = (self._total - self._done) / rate
        print(
            f"{self._title}: {self._done / self._total:.1%} of {self._total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
            f"{_duration(left)} left",
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
