"""Hooks on the modules inside a model, by which a recording knows what runs. All are gone when their stack closes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import nn

from megaselect.compatibility import compiled_parts, modes_suspended
from megaselect.recomputation.tape.recorder import Keep, Recording
from megaselect.trees import tensors_in


@contextlib.contextmanager
def modules_told(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Inside, the recording is told which module runs."""
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if path:
                _around_forward(stack, module, functools.partial(recording.enter_module, path), recording.leave_module)
        yield


def hold_settings(stack: ExitStack, recording: Recording, held: Mapping[nn.Module, Keep]) -> None:
    """While a module of `held` runs, its own rule says what the recording saves."""
    for module, keep in held.items():
        _hold_inside(stack, recording, module, keep)


def _hold_inside(stack: ExitStack, recording: Recording, module: nn.Module, keep: Keep) -> None:
    outside: list[Keep] = []

    def begins() -> None:
        outside.append(recording.keep)
        recording.keep = keep

    def ends() -> None:
        recording.keep = outside.pop()

    _around_forward(stack, module, begins, ends)


def layers_told(stack: ExitStack, recording: Recording, layers: Iterable[nn.Module], last: Iterable[nn.Module]) -> None:
    """The recording is told what comes into each of these layers, and what comes out of those of `last`, first of all.

    That is what goes on: without it the last layer would run again while the logits are there.
    """

    def begins(_: nn.Module, args: Any, kwargs: Any) -> None:
        recording.saving.layer_begins(list(tensors_in([args, kwargs])))

    def ends(_: nn.Module, __: Any, output: Any) -> None:
        recording.saving.layer_begins(list(tensors_in(output))[:1])

    for layer in layers:
        stack.callback(layer.register_forward_pre_hook(begins, with_kwargs=True).remove)
    for layer in last:
        stack.callback(layer.register_forward_hook(ends).remove)


def leave_compiled_alone(stack: ExitStack, model: nn.Module) -> None:
    """Compiled modules run as they would without us; what they save is saved."""
    stack.enter_context(compiled_parts(model, _Aside))


def _around_forward(stack: ExitStack, module: nn.Module, begins: Callable[[], None], ends: Callable[[], None]) -> None:
    runs = 0

    def before(*_: Any) -> None:
        nonlocal runs
        runs += 1
        begins()

    def after(*_: Any) -> None:
        nonlocal runs
        if runs:  # else it had begun before the hooks were there
            runs -= 1
            ends()

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after, always_call=True).remove)


class _Aside:
    """A call that our modes do not see."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with modes_suspended():
            return self.call(*args, **kwargs)
