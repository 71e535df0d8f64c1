"""What asks a run to stop or to save: signals, the time limit, a callback. It waits for the end of its step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Literal, Self

import torch

from megaselect.distributed.ranks import Ranks

StopReason = Literal["SIGINT", "SIGTERM", "SIGHUP", "exit-after", "callback"]
_REASONS: tuple[StopReason | None, ...] = (None, "SIGINT", "SIGTERM", "SIGHUP", "exit-after", "callback")
# torchrun sends on the SIGINT that Ctrl-C has sent to its whole process group: the same one comes to a rank twice.
_ECHO_SECONDS = 2.0
Handler = Callable[[int, FrameType | None], object] | int | None  # as signal.signal takes and returns one


class StopRequest:
    """While entered, the first SIGINT, SIGTERM or SIGHUP asks the run to stop; SIGUSR1 asks it to save and go on.

    A second SIGINT interrupts at once. SIGHUP (the terminal is gone) stays ignored where it was, as by nohup. seconds:
    after which the run is asked to stop too, from now on. ranks: what one of several is asked, all do, from the moment
    that they agree on it.
    """

    def __init__(self, seconds: float | None = None, ranks: Ranks | None = None) -> None:
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._ranks = ranks or Ranks()
        self._asked: StopReason | None = None
        self._interrupted_at = 0.0
        self._agreed: StopReason | None = None
        self._save = False
        self._before: dict[signal.Signals, Handler] = {}

    @property
    def reason(self) -> StopReason | None:
        """Why the run should stop; None: it should go on."""
        return self._own_reason if self._ranks.size == 1 else self._agreed

    def agree(self) -> None:
        """Have all ranks know what any of them was asked; each must call it at the same place."""
        if self._ranks.size > 1:
            own = torch.tensor([_REASONS.index(self._own_reason), self._save])
            asked = self._ranks.gather(own)
            reasons = [reason for code in asked[:, 0].tolist() if (reason := _REASONS[code])]
            self._agreed = self._agreed or (reasons[0] if reasons else None)
            self._save = bool(asked[:, 1].any())

    @property
    def _own_reason(self) -> StopReason | None:
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
        now = time.monotonic()
        if self._asked != "SIGINT":
            self._asked, self._interrupted_at = "SIGINT", now
        elif self._ranks.size == 1 or now - self._interrupted_at > _ECHO_SECONDS:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.ask("SIGHUP" if number == signal.SIGHUP else "SIGTERM")

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        self._save = True
