"""What asks a run to stop or to save: signals, the time limit, a callback. It waits for the end of its step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Literal, Self

StopReason = Literal["SIGINT", "SIGTERM", "SIGHUP", "exit-after", "callback"]
Handler = Callable[[int, FrameType | None], object] | int | None  # as signal.signal takes and returns one


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP asks the run to stop; SIGUSR1 asks it to save and go on.

    A second SIGINT interrupts at once. SIGHUP (the terminal is gone) stays ignored where it was, as by nohup. seconds:
    after which the run is asked to stop too, from now on.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._asked: StopReason | None = None
        self._save = False
        self._before: dict[signal.Signals, Handler] = {}

    @property
    def reason(self) -> StopReason | None:
        """Why the run should stop; None: it should go on."""
        if self._asked is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return "exit-after"
        return self._asked

    def ask(self, reason: StopReason) -> None:
        """Ask the run to stop. What asked first stays the reason."""
        self._asked = self._asked or reason

    def take_save(self) -> bool:
        """Whether a save was asked for since the last call."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signal handlers can be set nowhere else
            handlers = {
                signal.SIGINT: self._interrupt,
                signal.SIGTERM: self._stop,
                signal.SIGHUP: self._stop,
                signal.SIGUSR1: self._ask_to_save,
            }
            if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
                del handlers[signal.SIGHUP]
            for number, handler in handlers.items():
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._asked == "SIGINT":
            raise KeyboardInterrupt
        self._asked = "SIGINT"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.ask("SIGHUP" if number == signal.SIGHUP else "SIGTERM")

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
