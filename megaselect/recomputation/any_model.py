"""A plan on any module, as it is: hooks on its forward, by which passes are recorded, and followed later.

Two hooks on the module's forward are all that is put on it. The first forward pass of a kind (the same shapes, dtypes
and modes) is recorded, later ones follow the recording; where one is otherwise, the rest of it is recorded anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from megaselect.compatibility import fake_copy, is_observed, only_observed
from megaselect.ledger import Ledger, record
from megaselect.ledger.layer_paths import layer_paths
from megaselect.recomputation.running_passes import Kind, Pass, RunningPasses
from megaselect.recomputation.tape.calls import autocast_dtypes
from megaselect.recomputation.tape.follower import Follower
from megaselect.recomputation.tape.modes import Calls, Operators
from megaselect.recomputation.tape.module_hooks import hold_settings, layers_told, leave_compiled_alone, modules_told
from megaselect.recomputation.tape.program import Compiler, Program, uses_of
from megaselect.recomputation.tape.recorder import Recording
from megaselect.recomputation.tape.replay import unpack
from megaselect.recomputation.tape.settings import FULL, NONE, Setting, saves, settings_of
from megaselect.recomputation.tape.values import Place
from megaselect.recomputation.without_values import without_values
from megaselect.trees import tensors_in

KINDS = 64  # of forward passes that are remembered
PLANNED = "planned"  # in place of a setting where operators are chosen one by one
_ATTRIBUTE = "megaselect_plan"  # of a model that has one
PATIENCE = 3  # forward passes in a row that are not as the one before, after which each is recorded


def has_plan(model: nn.Module) -> bool:
    """Whether the model or a part of it has a plan."""
    return bool(plans_of(model))


def plans_of(model: nn.Module) -> list[AnyModelPlan]:
    """Of the model and of its parts."""
    return [plan for module in model.modules() if (plan := _plan_of(module)) is not None]


def _plan_of(module: nn.Module) -> AnyModelPlan | None:
    plan: AnyModelPlan | None = getattr(module, _ATTRIBUTE, None)
    return plan


def _what_holds() -> tuple[Any, ...]:
    """Of torch's settings, what changes operators or how they compute."""
    kernels = torch.backends.cuda
    return (
        *autocast_dtypes(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        kernels.flash_sdp_enabled(),
        kernels.mem_efficient_sdp_enabled(),
        kernels.cudnn_sdp_enabled(),
        kernels.math_sdp_enabled(),
    )


class _Hook:
    """Calls a method of the plan by its name: so a copy of the model calls the copy of the plan."""

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
        self._kinds: dict[Any, Kind] = {}
        self._running = RunningPasses()
        self._is_off = False
        self._handles = [
            model.register_forward_pre_hook(_Hook(self, "_begin"), with_kwargs=True),
            model.register_forward_hook(_Hook(self, "_end"), always_call=True),
        ]
        setattr(model, _ATTRIBUTE, self)

    @property
    def bytes(self) -> int | None:
        """Saved for backward by the last forward pass, one that departed left out; None before the first."""
        return self._last.bytes if self._last else None

    def undo(self) -> None:
        """Take the hooks away: the model is as it was. What has been made for a backward pass stays right."""
        for handle in self._handles:
            handle.remove()
        self.model.__dict__.pop(_ATTRIBUTE, None)

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Inside, the model saves what it would without a plan."""
        before, self._is_off = self._is_off, True
        try:
            yield
        finally:
            self._is_off = before

    @property
    def remade(self) -> int:
        """Tensors that the backward pass of the same forward pass makes again."""
        return sum(step.value is not None for step in self._last.packs) if self._last else 0

    def predict(self, *args: Any, **kwargs: Any) -> int:
        """Bytes that model(*args, **kwargs) will save for backward, as `ledger` counts them."""
        return self.ledger(*args, **kwargs).total

    def ledger(self, *args: Any, **kwargs: Any) -> Ledger:
        """What model(*args, **kwargs) will save, by a run of a copy whose tensors have shapes and no values.

        Raises RecomputeError where the model reads values, or an operator does without them what it would not do with
        them: then the first forward pass tells, by `bytes`.
        """
        remedy = "plan.bytes has what is saved after one forward pass"
        with (
            without_values(self.model, remedy),
            fake_copy((self.model, args, kwargs)) as (model, args, kwargs),
            torch.enable_grad(),
            record(model) as rows,
        ):
            model(*args, **kwargs)
        return rows

    def __str__(self) -> str:
        said = (
            self.setting if isinstance(self.setting, str) else ", ".join(f"{k}: {v}" for k, v in self.setting.items())
        )
        lines = [f"{type(self.model).__name__}: recompute {said}"]
        if self._last:
            lines.append(f"  {self._last.bytes:,} bytes saved for backward, {self.remade} tensors made again")
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
        self.unproved, self._kinds, self._last, self._running, self._is_off = {}, {}, None, RunningPasses(), False

    # A forward pass

    def _begin(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._running.drop_interrupted()
        passes = self._running.passes
        if passes or self._is_off or not self._saves_less():
            passes.append(Pass())
            return
        kind = self._kind(model, args, kwargs)
        current = Pass(kind)
        passes.append(current)
        if kind.program is None:
            self._record(current)
        else:
            self._follow(current, kind.program)

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not self._running.passes:
            return
        current = self._running.passes.pop()
        current.end()
        if current.recording is not None and current.kind is not None:
            self._finish(current, current.kind, current.recording)
        elif current.kind is not None:
            current.kind.departures = 0
            self._last = current.kind.program

    def _saves_less(self) -> bool:
        """Not where gradients are off, nor inside saved-tensor hooks of others: these keep what they are there for."""
        return torch.is_grad_enabled() and set(self.settings.values()) != {NONE} and only_observed()

    def _kind(self, model: nn.Module, args: Any, kwargs: Any) -> Kind:
        tensors = [(part.shape, part.dtype, part.device, part.requires_grad) for part in tensors_in([args, kwargs])]
        trained = tuple(part.requires_grad for part in model.parameters())
        key = (model.training, is_observed(), *_what_holds(), trained, *tensors)
        kind = self._kinds.pop(key, None) or Kind()
        self._kinds[key] = kind  # the last in the dictionary is the latest
        if len(self._kinds) > KINDS:
            del self._kinds[next(iter(self._kinds))]
        return kind

    def _record(self, current: Pass) -> Recording:
        """Begin, or go on with, recording the pass."""
        recording = current.recording = self._recording(current)
        self._enter_modules(current.stack, recording)
        if current.follower is None:
            self.recorded += 1
            current.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(recording.pack, unpack))
            current.stack.enter_context(Calls(recording))
        current.stack.enter_context(Operators(recording))
        return recording

    def _recording(self, current: Pass) -> Recording:
        if self.rerun is None:
            has_long_recipes = FULL in self.settings.values()
            return Recording(self.model, saves(self.settings[""]), has_long_recipes=has_long_recipes)
        rerun = self.rerun
        recording = Recording(self.model, lambda one, place: rerun.get(place) != one.name, is_exact=True)
        current.stack.enter_context(modules_told(self.model, recording))
        return recording

    def _follow(self, current: Pass, program: Program) -> None:
        def departed() -> Recording:
            self.departed += 1
            return self._record(current)

        follower = current.follower = Follower(program, departed)
        self.followed += 1
        current.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(follower.pack, unpack))
        leave_compiled_alone(current.stack, self.model)
        current.stack.callback(follower.let_go)
        current.stack.enter_context(follower)

    def _finish(self, current: Pass, kind: Kind, recording: Recording) -> None:
        recording.saving.frame.uses.update(uses_of(recording.saving.packs))
        for name, count in recording.saving.unproved.items():
            self.unproved[name] = max(count, self.unproved.get(name, 0))
        if current.follower is not None:
            kind.departures += 1
            kind.program = None  # the next one is recorded from its beginning
        else:
            program = self._last = Compiler(recording).program()
            if kind.departures <= PATIENCE:
                kind.program = program
        recording.forget_tensors()

    def _enter_modules(self, stack: ExitStack, recording: Recording) -> None:
        """Have the recording know which setting holds, and where layers begin."""
        modules = dict(self.model.named_modules())
        held = {modules[path]: saves(setting) for path, setting in self.settings.items() if path}
        hold_settings(stack, recording, held)
        layers = [path for path in dict.fromkeys(layer_paths(self.model).values()) if path]
        last = {path.rpartition(".")[0]: path for path in layers}  # of each list of layers
        full = [path for path in layers if self._setting_of(path) == FULL]
        layers_told(
            stack, recording, [modules[path] for path in full], [modules[p] for p in last.values() if p in full]
        )
        leave_compiled_alone(stack, self.model)

    def _setting_of(self, path: str) -> str:
        while path and path not in self.settings:
            path = path.rpartition(".")[0]
        return self.settings[path]
