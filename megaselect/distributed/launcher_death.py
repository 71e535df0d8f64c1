"""No rank outlives the launcher that started it. No torch: a rank should know before it imports that."""

from __future__ import annotations

import ctypes
import os
import signal

_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


def end_with_launcher() -> None:
    """Have Linux end this process as SIGTERM does where torchrun is killed: it saves, and no rank is left behind."""
    if "TORCHELASTIC_RUN_ID" in os.environ and hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
