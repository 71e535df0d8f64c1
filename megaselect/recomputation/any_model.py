"""megaselect.recompute: recomputation for any module, as it is.

Two hooks on the module's forward are all that is put on it. The first forward pass of a kind (the same shapes, dtypes
and modes) is recorded, later ones follow the recording; where one is otherwise, the rest of it is recorded anew.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import Any

import torch
from torch import nn

from megaselect.compatibility import compiled_parts, fake_copy, is_observed, modes_suspended
from megaselect.errors import MegaselectError, RecomputeError
from megaselect.ledger import Ledger, record
from megaselect.ledger.layer_paths import layer_paths
from megaselect.recomputation.tape.follower import Follower
from megaselect.recomputation.tape.program import Compiler, Program, uses_of
from megaselect.recomputation.tape.recorder import Calls, Operators, Recording
from megaselect.recomputation.tape.replay import unpack
from megaselect.recomputation.tape.settings import FULL, NONE, Setting, saves, settings_of
from megaselect.recomputation.tape.values import Place
from megaselect.trees import tensors_in

KINDS = 64  # of forward passes that are remembered
PLANNED = "planned"  # in place of a setting where operators are chosen one by one
_MODULE_FILE = inspect.getsourcefile(nn.Module)
_ATTRIBUTE = "megaselect_plan"  # of a model that has one
PATIENCE = 3  # forward passes in a row that are not as the one before, after which each is recorded


def has_plan(model: nn.Module) -> bool:
    """Whether the model or a part of it has a plan."""
    return any(_plan_of(module) is not None for module in model.modules())


def _plan_of(module: nn.Module) -> AnyModelPlan | None:
    plan: AnyModelPlan | None = getattr(module, _ATTRIBUTE, None)
    return plan


@contextlib.contextmanager
def modules_told(model: nn.Module, recording: Recording) -> Iterator[None]:
    """Inside, the recording is told which module runs."""

    def begins(path: str, *_: Any) -> None:
        recording.enter_module(path)

    def ends(*_: Any) -> None:
        recording.leave_module()

    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(functools.partial(begins, path)))
            handles.append(module.register_forward_hook(ends, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def without_values(model: nn.Module) -> Iterator[None]:
    """Raises RecomputeError for whatever is raised inside, where the model runs on tensors without values."""
    try:
        yield
    except MegaselectError:
        raise
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise RecomputeError(
            f"{type(model).__name__} does not run without values ({type(error).__name__}: {said}): "
            "give a setting; plan.bytes has what is saved after one forward pass"
        ) from error


class _Kind:
    """Forward passes with alike arguments."""

    def __init__(self) -> None:
        self.program: Program | None = None
        self.departures = 0  # in a row


class _Pass:
    """A forward pass that runs: contexts to leave, and who notes it. caller: the frame that runs it."""

    def __init__(self, kind: _Kind, caller: FrameType) -> None:
        self.kind, self.caller = kind, caller
        self.stack = ExitStack()
        self.recording: Recording | None = None
        self.follower: Follower | None = None


class _Running(threading.local):
    """Of each thread: the forward passes that have begun, the innermost last. None: one that is left alone."""

    def __init__(self) -> None:
        self.passes: list[_Pass | None] = []


class _Hook:
    """A hook of a plan's: known by its type, and copied with its model."""

    def __init__(self, plan: AnyModelPlan, name: str) -> None:
        self.plan, self.name = plan, name

    def __call__(self, *args: Any) -> None:
        getattr(self.plan, self.name)(*args)


class AnyModelPlan:
    """What is saved and what is made again in a model of any make.

    recorded, followed, departed: forward passes that were recorded, that followed a recording, and of those the ones
    that were otherwise from some call on. unproved: operators whose results were saved since running them again gave
    others, with how often.
    """

    def __init__(self, model: nn.Module, setting: Setting, rerun: Mapping[Place, str] | None = None) -> None:
        """rerun: place of each operator of a forward pass that runs again, and its name; `setting` says so in words.

        Raises RecomputeError for a setting or a path that is not there.
        """
        self.model, self.setting, self.rerun = model, setting, rerun
        self.settings = settings_of(model, setting) if rerun is None else {"": PLANNED}
        self.recorded = self.followed = self.departed = 0
        self.unproved: dict[str, int] = {}
        self._last: Program | None = None
        self._kinds: dict[Any, _Kind] = {}
        self._running = _Running()
        self._handles = [
            model.register_forward_pre_hook(_Hook(self, "_begin"), with_kwargs=True),
            model.register_forward_hook(_Hook(self, "_end"), always_call=True),
        ]
        setattr(model, _ATTRIBUTE, self)

    @property
    def bytes(self) -> int | None:
        """Saved for backward by a forward pass like the last one that was recorded; None before the first."""
        return self._last.bytes if self._last else None

    def undo(self) -> None:
        """Take the hooks away: the model is as it was. What has been made for a backward pass stays right."""
        for handle in self._handles:
            handle.remove()
        self.model.__dict__.pop(_ATTRIBUTE, None)

    def predict(self, *args: Any, **kwargs: Any) -> int:
        """Bytes that model(*args, **kwargs) will save for backward, as `ledger` counts them."""
        return self.ledger(*args, **kwargs).total

    def ledger(self, *args: Any, **kwargs: Any) -> Ledger:
        """What model(*args, **kwargs) will save, by a run of a copy whose tensors have shapes and no values.

        Raises RecomputeError where the model reads values, or an operator does without them what it would not do with
        them: then the first forward pass tells, by `bytes`.
        """
        try:
            with (
                fake_copy((self.model, args, kwargs)) as (model, args, kwargs),
                torch.enable_grad(),
                record(model) as rows,
            ):
                model(*args, **kwargs)
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise RecomputeError(
                f"{type(self.model).__name__} does not run without values ({type(error).__name__}: {said}): "
                "plan.bytes has what is saved after one forward pass"
            ) from error
        return rows

    def __str__(self) -> str:
        said = (
            self.setting if isinstance(self.setting, str) else ", ".join(f"{k}: {v}" for k, v in self.setting.items())
        )
        lines = [f"{type(self.model).__name__}: recompute {said}"]
        if self._last:
            remade = sum(step.value is not None for step in self._last.packs)
            lines.append(f"  {self._last.bytes:,} bytes saved for backward, {remade} tensors made again")
            lines.append(
                f"  {self.recorded} forward passes recorded, {self.followed} followed, {self.departed} departed"
            )
        else:
            lines.append("  no forward pass has been recorded yet; of a model that is compiled as a whole none is")
        if any(kind.departures > PATIENCE for kind in self._kinds.values()):
            lines.append("  its forward passes differ from step to step: each is recorded, which takes longer")
        for name, count in self.unproved.items():
            lines.append(f"  saved since running it again gave other bits: {name} ({count} times)")
        return "\n".join(lines)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: a copy records for itself."""
        names = ("model", "setting", "rerun", "settings", "_handles")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.recorded = self.followed = self.departed = 0
        self.unproved, self._kinds, self._last, self._running = {}, {}, None, _Running()

    # A forward pass

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        passes = self._running.passes
        self._drop_interrupted(passes)
        if passes or not torch.is_grad_enabled() or set(self.settings.values()) == {NONE}:
            passes.append(None)
            return
        current = _Pass(self._kind(model, args, kwargs), _callers()[0])
        passes.append(current)
        if current.kind.program is None:
            self._record(current)
        else:
            self._follow(current, current.kind.program)

    @staticmethod
    def _drop_interrupted(passes: list[_Pass | None]) -> None:
        """A KeyboardInterrupt, no Exception, ends a forward pass without its hooks: torch runs them for Exceptions."""
        if passes and passes[0] is not None and all(passes[0].caller is not one for one in _callers()):
            passes[0].stack.close()
            passes.clear()

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._running.passes:
            return
        current = self._running.passes.pop()
        if current is None:
            return
        current.stack.close()
        if current.recording is None:
            current.kind.departures = 0
            return
        self._finish(current, current.recording)

    def _kind(self, model: nn.Module, args: Any, kwargs: Any) -> _Kind:
        tensors = [(part.shape, part.dtype, part.device, part.requires_grad) for part in tensors_in([args, kwargs])]
        autocast = [torch.get_autocast_dtype(d) if torch.is_autocast_enabled(d) else None for d in ("cpu", "cuda")]
        key = (model.training, is_observed(), *autocast, *tensors)
        kind = self._kinds.pop(key, None) or _Kind()
        self._kinds[key] = kind  # the last in the dictionary is the latest
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        return kind

    def _record(self, current: _Pass) -> Recording:
        """Begin, or go on with, recording the pass."""
        recording = current.recording = self._recording(current)
        self._enter_modules(current.stack, recording)
        if current.follower is None:
            self.recorded += 1
            current.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(recording.pack, unpack))
            current.stack.enter_context(Calls(recording))
        current.stack.enter_context(Operators(recording))
        return recording

    def _recording(self, current: _Pass) -> Recording:
        if self.rerun is None:
            has_long_recipes = FULL in self.settings.values()
            return Recording(self.model, saves(self.settings[""]), has_long_recipes=has_long_recipes)
        rerun = self.rerun
        recording = Recording(self.model, lambda one, place: rerun.get(place) != one.name, is_exact=True)
        current.stack.enter_context(modules_told(self.model, recording))
        return recording

    def _follow(self, current: _Pass, program: Program) -> None:
        def departed() -> Recording:
            self.departed += 1
            return self._record(current)

        follower = current.follower = Follower(program, departed)
        self.followed += 1
        current.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(follower.pack, unpack))
        self._step_aside(current.stack)
        current.stack.enter_context(follower)

    def _finish(self, current: _Pass, recording: Recording) -> None:
        recording.frame.uses.update(uses_of(recording.packs))
        kind = current.kind
        for name, count in recording.unproved.items():
            self.unproved[name] = max(count, self.unproved.get(name, 0))
        if current.follower is not None:
            kind.departures += 1
            kind.program = None  # the next one is recorded from its beginning
        else:
            program = self._last = Compiler(recording).program()
            if kind.departures <= PATIENCE:
                kind.program = program
        recording.forget()

    def _enter_modules(self, stack: ExitStack, recording: Recording) -> None:
        """Have the recording know which setting holds, and where layers begin."""
        modules = dict(self.model.named_modules())
        for path, setting in self.settings.items():
            if path:
                self._hold_inside(stack, recording, modules[path], saves(setting))
        for path in set(layer_paths(self.model).values()) - {""}:
            if self._setting_of(path) == FULL:

                def begins(_: nn.Module, args: Any, kwargs: Any) -> None:
                    recording.layer_begins(list(tensors_in([args, kwargs])))

                stack.callback(modules[path].register_forward_pre_hook(begins, with_kwargs=True).remove)
        self._step_aside(stack)

    def _setting_of(self, path: str) -> str:
        while path and path not in self.settings:
            path = path.rpartition(".")[0]
        return self.settings[path]

    @staticmethod
    def _hold_inside(stack: ExitStack, recording: Recording, module: nn.Module, keep: Any) -> None:
        outside: list[Any] = []

        def begins(*_: Any) -> None:
            outside.append(recording.keep)
            recording.keep = keep

        def ends(*_: Any) -> None:
            recording.keep = outside.pop()

        stack.callback(module.register_forward_pre_hook(begins).remove)
        stack.callback(module.register_forward_hook(ends, always_call=True).remove)

    def _step_aside(self, stack: ExitStack) -> None:
        """Compiled modules run as they would without us; what they save is saved."""
        stack.enter_context(compiled_parts(self.model, _Aside))


def _callers() -> list[FrameType]:
    """The frames that run modules, the innermost first."""
    found, frame = [], inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_filename == _MODULE_FILE:
            found.append(frame)
        frame = frame.f_back
    return found


class _Aside:
    """A call that our modes do not see."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with modes_suspended():
            return self.call(*args, **kwargs)
