"""SIGTERM while nothing else handles it, as before the first step: an exception, so that a rank can say why it ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from megaselect.distributed.together import BeginAgain


class Stopped(BaseException):
    """SIGTERM has come."""


class StopHandler:
    """SIGTERM's while inside stop_at_start, unless another one takes its place."""

    def __init__(self) -> None:
        self._raises = True

    def ignore(self) -> None:
        """From now on."""
        self._raises = False

    def __call__(self, *_: object) -> None:
        if self._raises:
            self.ignore()  # a second one must not interrupt what follows from the first
            raise Stopped


@contextmanager
def stop_at_start() -> Iterator[StopHandler]:
    """The first SIGTERM raises Stopped while inside. In a thread, which hears no signals, it does nothing.

    Whoever leaves by an exception is about to end and to tell why: SIGTERM, by which torchrun ends all ranks when one
    has ended, stays ignored.
    """
    handler = StopHandler()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield handler
        handler.ignore()
        signal.signal(signal.SIGTERM, before)
    except BeginAgain:
        signal.signal(signal.SIGTERM, before)
        raise
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
