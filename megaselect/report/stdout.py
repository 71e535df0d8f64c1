"""Standard output as reports are printed to it: lines end with their last sign, in a pipe and on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from megaselect.report.output import LossyOutput

PLAIN_COLUMNS = 80


class ReportConsole(Console):
    """Rich's console, which fills the lines of tables and of wrapped text with blanks; here those are left out."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.push_render_hook(_TrimmingHook())

    def on_broken_pipe(self) -> None:
        """Rich would exit with code 1, which is that of a check that failed."""
        raise


def stdout_console(file: LossyOutput | None = None) -> ReportConsole:
    """Standard output as it is now. isatty alone decides: FORCE_COLOR must not send a progress bar into a log file.

    file: what stands before it. None: printing raises OSError where it cannot be written.
    """
    terminal = sys.stdout.isatty()
    width = None if terminal else PLAIN_COLUMNS
    return ReportConsole(file=cast(IO[str] | None, file), force_terminal=terminal, width=width)


class _TrimmingHook(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Trimmed(renderable) for renderable in renderables]


class _Trimmed:
    """Something to print, without the blanks at its lines' ends."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        return _without_trailing_blanks(console.render(self._renderable, options))


def _without_trailing_blanks(segments: Iterable[Segment]) -> Iterator[Segment]:
    held: list[Segment] = []  # blanks, as long as nothing follows them in their line
    for segment in segments:
        if segment.control:  # a code for the terminal, which takes no column
            yield segment
            continue
        for place, part in enumerate(segment.text.split("\n")):
            if place:
                held.clear()
                yield Segment.line()
            if shown := part.rstrip(" "):
                yield from held
                held.clear()
                yield Segment(shown, segment.style)
            if blanks := part[len(shown) :]:
                held.append(Segment(blanks, segment.style))
    yield from held
