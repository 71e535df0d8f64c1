"""The modes of torch's that show a recording what runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megaselect.compatibility import TorchDispatchMode
from megaselect.recomputation.tape.recorder import Recording
from megaselect.recomputation.tape.replay import unpack


class Calls(TorchFunctionMode):
    """Shows a recording the calls of torch's interface."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.call(func, args, kwargs or {})


class Operators(TorchDispatchMode):
    """Shows a recording the operators."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self.recording = recording

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recording.operator(func, args, kwargs or {})


@contextlib.contextmanager
def recorded_by(recording: Recording) -> Iterator[None]:
    """Inside, a forward pass is recorded."""
    hooks = torch.autograd.graph.saved_tensors_hooks(recording.pack, unpack)
    with hooks, Calls(recording), Operators(recording):
        yield
