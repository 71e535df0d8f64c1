"""Results of a second run, held against forward's: random numbers by value, all else by a hash."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from sys import _getframe
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megaselect.compatibility import is_in_backward
from megaselect.ledger import recorder
from megaselect.ledger.rerun import MODULE_CALL, RerunMode, operator_name
from megaselect.trees import tensors_in
from megaselect.verification.differences import by_how_much

# Of a result's norm: what no rounding makes of it, in 16 bit and in more. Another mask makes about half.
_DEPARTURE_16_BIT, _DEPARTURE = 0.1, 1e-3
_16_BIT = (torch.bfloat16, torch.float16)


class StepWatch(RerunMode):
    """On over forward and backward.

    faults: a sentence for each random result of a second run that no call of the operator gave in forward. drawn,
    redrawn: how many calls there were of operators that torch tags as drawing from a generator.
    changed: a sentence for each other result of a second run that the operator did not give in forward. It names the
    place where a second run departs from the first; whether that matters, gradients say. cast: a sentence for each that
    forward had in another dtype alone, as without its autocast; differences in fp64 do not show that. departed: those
    of `changed` that are further from all that forward had than rounding takes them.
    own_draws: a sentence for each random result that backward code of its own drew and forward did not.
    stops_gradients: whether forward detached a tensor that has a gradient.
    meet: called with each torch.Generator that is about to be drawn from.
    """

    def __init__(self, model: nn.Module, meet: Callable[[torch.Generator], None]) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.changed: list[str] = []
        self.cast: list[str] = []
        self.departed: list[str] = []
        self.own_draws: list[str] = []
        self.stops_gradients = False
        self.drawn = self.redrawn = 0
        self._meet = meet
        self._paths = {id(module): path or type(module).__name__ for path, module in model.named_modules()}
        self._random: dict[str, list[_Draw]] = defaultdict(list)
        self._results: dict[str, set[int]] = defaultdict(set)
        self._dtypes: dict[tuple[str, torch.Size], set[torch.dtype]] = defaultdict(set)
        self._sketches: dict[tuple[str, torch.Size], list[float]] = defaultdict(list)

    @property
    def ran_in_16_bit(self) -> bool:
        """Whether an operator of forward gave results in bf16 or fp16."""
        return any(dtype in _16_BIT for dtypes in self._dtypes.values() for dtype in dtypes)

    def calling(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An operator is about to run."""
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.Generator):
                self._meet(given)
        if op is torch.ops.aten.detach.default and torch.is_grad_enabled() and not is_in_backward():
            by_the_ledger = _getframe(2).f_globals.get("__name__") == recorder.__name__
            self.stops_gradients |= args[0].requires_grad and not by_the_ledger

    def called(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, again: bool) -> None:
        """An operator returned `out`; again: in a second run."""
        if torch.Tag.nondeterministic_seeded in getattr(op, "tags", ()):
            self._drew(operator_name(op), [result.detach().clone() for result in tensors_in(out)], again)
        else:
            self._computed(operator_name(op), out, again)

    def _drew(self, name: str, results: list[Tensor], again: bool) -> None:
        draw = _Draw(self._path(), results)
        if not again and is_in_backward():
            fault = _fault(draw, self._random[name])
            self.own_draws += [f"{draw.path}: {name} in backward {fault}"] if fault else []
            return
        if not again:
            self.drawn += 1
            self._random[name].append(draw)
            return
        self.redrawn += 1
        fault = _fault(draw, self._random[name])
        if fault:
            self.faults.append(f"{draw.path}: {name} in backward {fault}")

    def _computed(self, name: str, out: Any, again: bool) -> None:
        """Operators that forward did not call at all (torch takes others where it needs no graph) say nothing."""
        result = next(tensors_in(out), None)
        found = _hash(result)
        if result is None or found is None:
            return
        dtypes = self._dtypes[name, result.shape]
        if not again:
            self._results[name].add(found)
            dtypes.add(result.dtype)
            self._sketches[name, result.shape].append(_sketch(result))
        elif name in self._results and found not in self._results[name]:
            self.changed.append(f"{self._path()}: {name} gives another result in its second run than in forward")
            if self._departs(name, result):
                self.departed.append(self.changed[-1])
            if dtypes and result.dtype not in dtypes:
                first = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                again_in = str(result.dtype).removeprefix("torch.")
                self.cast.append(f"{self._path()}: {name} gives {again_in} in its second run, {first} in forward")

    def _departs(self, name: str, result: Tensor) -> bool:
        """Whether no call of forward's gave about this. A difference's sketch is about as large as the difference."""
        sketch, size = _sketch(result), float(result.detach().double().norm())
        nearest = min((abs(sketch - first) for first in self._sketches[name, result.shape]), default=0.0)
        return nearest > (_DEPARTURE_16_BIT if result.dtype in _16_BIT else _DEPARTURE) * size

    def _path(self) -> str:
        """Of the innermost module that is running; what runs outside of all is the model's own doing."""
        frame: FrameType | None = _getframe(1)
        while frame is not None:
            if frame.f_code is MODULE_CALL and id(frame.f_locals["self"]) in self._paths:
                return self._paths[id(frame.f_locals["self"])]
            owner = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
            if isinstance(owner, nn.Module) and id(owner) in self._paths:  # a method that was called for itself
                return self._paths[id(owner)]
            frame = frame.f_back
        return "outside the model's modules"


class _Draw(NamedTuple):
    """What a call drew, and in which module."""

    path: str
    results: list[Tensor]

    def is_like(self, other: _Draw) -> bool:
        return [one.shape for one in self.results] == [one.shape for one in other.results]


def _fault(draw: _Draw, candidates: list[_Draw]) -> str:
    """Why what a second run drew is nothing that forward drew; empty where it is.

    Looked for in all of forward: the second run of a method or a lambda has no module's call on its stack.
    """
    alike = [first for first in candidates if first.is_like(draw)]
    if any(all(map(torch.equal, first.results, draw.results)) for first in alike):
        return ""
    if not alike:
        return "draws what forward did not draw"
    first = next((first for first in alike if first.path == draw.path), alike[0])
    wrong = next(
        (got, want) for got, want in zip(draw.results, first.results, strict=True) if not torch.equal(got, want)
    )
    return f"draws other numbers than in forward: the result {by_how_much(*wrong)}"


def _hash(result: Tensor | None) -> int | None:
    """Of a floating-point result's dtype, shape and bits. None for what has none: no such tensor, fake or sparse."""
    if result is None or not result.is_floating_point() or not result.numel() or result.layout is not torch.strided:
        return None
    if type(result) is not Tensor or result.is_meta:
        return None
    plain = result.detach().cpu().contiguous().reshape(-1)
    return hash((result.dtype, result.shape, plain.view(torch.uint8).numpy().tobytes()))


def _sketch(result: Tensor) -> float:
    """The sum of the elements with random signs, the same for all results of one size, in fp64."""
    flat = result.detach().double().cpu().reshape(-1)
    return float(flat @ _signs(flat.numel()))


@functools.lru_cache(maxsize=4)
def _signs(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
