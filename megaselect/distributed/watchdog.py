"""Ends a rank that waits for one that is gone where no error and no signal reaches it.

While a main thread waits inside a library, such as for the address of a rank that was killed before it left one, Python
handles no signal: torchrun's SIGTERM is not heard, and SIGKILL follows 30 seconds later, without a word.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch.distributed as dist

from megaselect.distributed.failures import FAILED, STOPPED, Failures
from megaselect.distributed.members import Member

PATIENCE_SECONDS = 15.0  # for the main thread to hear of it, and to end what it does; less than torchrun's 30
_PAUSE_SECONDS = 1.0


class Watchdog:
    """While entered. failures: over a connection of its own, since the main thread may be waiting on the other one."""

    def __init__(self, failures: Failures, members: Sequence[Member]) -> None:
        self._failures, self._members = failures, members
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._left.set()

    def _watch(self) -> None:
        patience_ends = None
        while not self._left.wait(_PAUSE_SECONDS):
            gone = [member for member in self._members if member.is_here_and_gone]
            with suppress(dist.DistError, RuntimeError):  # the store is gone: torchrun was killed, and SIGTERM has come
                gone = [member for member in gone if not self._failures.is_done(member.rank)]
            if gone:
                patience_ends = patience_ends or time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > patience_ends:
                    self._end()

    def _end(self) -> None:
        reason = None
        with suppress(dist.DistError, RuntimeError):
            reason = self._failures.raised_for_stop()
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            if reason:
                print(f"error: {reason}", file=sys.stderr, flush=True)
        os._exit(FAILED if reason else STOPPED)
