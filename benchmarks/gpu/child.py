"""Child processes that end: at a time limit, or where nothing is heard of them, with whatever they have started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOOK_SECONDS = 0.5
FAREWELL_SECONDS = 10.0  # of what is still in the pipe of a process that has ended


_live: set[Child] = set()
_stopping = threading.Event()


def stop_all() -> None:
    """End every child of this process, and start no more: for a process that is told to end."""
    _stopping.set()
    for child in list(_live):
        child.kill()


@dataclass(frozen=True)
class Ended:
    """code: exit status, negative for a signal. why: what it was ended for, or nothing where it ended itself."""

    code: int
    why: str = ""

    @property
    def in_words(self) -> str:
        """For a report."""
        return self.why or (f"ended by signal {-self.code}" if self.code < 0 else f"exit status {self.code}")


class Child:
    """A command in a process group of its own, from the tree's root. log: gets what it prints, each line named."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        if _stopping.is_set():
            raise RuntimeError(f"{name} was not started: this process is ending")
        self.name, self._log = name, log
        self._heard = time.monotonic()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=dict(environment or os.environ) | {"PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        _live.add(self)

    def wait(self, seconds: float, silence: float = float("inf")) -> Ended:
        """Until it ends; kill it after `seconds`, or `silence` seconds after its last word."""
        deadline = time.monotonic() + seconds
        why = ""
        while self._process.poll() is None:
            now = time.monotonic()
            if now >= deadline:
                why = f"stopped at its limit of {seconds:.0f} s"
            elif now - self._heard >= silence:
                why = f"stopped after {silence:.0f} s without a word"
            if why:
                break
            left = min(deadline - now, self._heard + silence - now, LOOK_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(max(left, 0.01))
        self.kill()
        return Ended(self._process.returncode, why)

    def running_until(self, seconds: float) -> int | None:
        """Its exit status once it has ended; None where it has not after `seconds`, and goes on."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """The whole group: also what it has left running."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(FAREWELL_SECONDS)
        _live.discard(self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._log.open("ab") as log:
            for line in self._process.stdout:
                self._heard = time.monotonic()
                log.write(f"[{self.name}] ".encode() + line)
                log.flush()
