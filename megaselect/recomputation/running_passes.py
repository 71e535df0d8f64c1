"""The forward passes of a model that have begun and not ended, in each thread."""

from __future__ import annotations

import inspect
import threading
from contextlib import ExitStack
from types import FrameType

from torch import nn

from megaselect.recomputation.tape.follower import Follower
from megaselect.recomputation.tape.program import Program
from megaselect.recomputation.tape.recorder import Recording

_MODULE_FILE = inspect.getsourcefile(nn.Module)


class Kind:
    """Forward passes with alike arguments. program: what they follow. departures: in a row."""

    def __init__(self) -> None:
        self.program: Program | None = None
        self.departures = 0


class Pass:
    """A forward pass that runs. kind: None where it is left alone. stack: contexts to leave when it ends.

    recording, follower: who notes it, if anybody.
    """

    def __init__(self, kind: Kind | None = None) -> None:
        self.kind = kind
        self.stack = ExitStack()
        self.recording: Recording | None = None
        self.follower: Follower | None = None
        self._caller: FrameType | None = _module_frames()[0]

    def end(self) -> None:
        """Leave its contexts, and let go of the frame that ran it: that holds the model's output."""
        self.stack.close()
        self._caller = None

    def is_gone(self) -> bool:
        """Whether an exception has ended it without its hooks: for a KeyboardInterrupt torch runs none."""
        return all(frame is not self._caller for frame in _module_frames())


class RunningPasses(threading.local):
    """passes: of this thread, the innermost last."""

    def __init__(self) -> None:
        self.passes: list[Pass] = []

    def drop_interrupted(self) -> None:
        """Of a pass that is gone, what was inside it is gone too."""
        if self.passes and self.passes[0].is_gone():
            gone = self.passes[0]
            gone.end()
            if gone.recording is not None:
                gone.recording.forget_tensors()
            self.passes.clear()


def _module_frames() -> list[FrameType]:
    """The frames that run modules, the innermost first."""
    found, frame = [], inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == _MODULE_FILE:
            found.append(frame)
        frame = frame.f_back
    return found
