"""Where each rank of a run lives, and whether it is still there. No torch."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Member:
    """Where a rank runs. kernel: what counts the processes there, which tells apart machines and containers."""

    rank: int
    pid: int
    host: str
    kernel: str

    @classmethod
    def here(cls, rank: int) -> Member:
        """This process as that rank."""
        return cls(rank, os.getpid(), socket.gethostname(), _kernel())

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def is_here_and_gone(self) -> bool:
        """Whether it ran where this process does, and has ended."""
        if self.kernel != _kernel():
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state in "ZX"  # its launcher has not looked yet


def _kernel() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return socket.gethostname()
