"""Which tensor of a step holds the first values that are not finite: the step is run again, watched by hooks.

Dropout masks are a function of the sample index, so it is the same step to the bit. It runs in the recompute mode of
the run and so in its memory, but not compiled: a graph has no modules to watch, and may round otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from megaselect.distributed.ranks import Ranks
from megaselect.models.gpt.apply_plan import applied_plan, apply_recompute
from megaselect.models.gpt.compiled import is_compiled
from megaselect.models.gpt.model import GPT
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState
from megaselect.training.step import Stepper
from megaselect.trees import tensors_in

Kind = Literal["weight", "output", "gradient of output", "gradient", "sum of gradients", "norm of gradients"]
_WORDS: dict[Kind, str] = {
    "weight": "weight {}",
    "output": "output of {}",
    "gradient of output": "gradient of the output of {}",
    "gradient": "gradient of {}",
    "sum of gradients": "gradient of {}, summed over the micro-batches",
    "norm of gradients": "norm of the gradients, each of which is finite",
}


@dataclass(frozen=True)
class Finding:
    """A tensor with values that are not finite, and how many.

    where: path of the module for outputs, else name of the parameter; empty for the loss and for the norm of all.
    micro_batch: counted from 0; None for what belongs to none.
    """

    kind: Kind
    where: str
    micro_batch: int | None
    nonfinite: int
    values: int
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        words = _WORDS[self.kind].format(self.where or "the model")
        count = f", {self.nonfinite} of {self.values} values" if self.values else ""
        return f"{words}{count}" + ("" if self.micro_batch is None else f", in micro-batch {self.micro_batch}")


def nonfinite_weight(optimizer: MixedPrecisionAdamW, ranks: Ranks) -> Finding | None:
    """The first weight that holds such values already; of a model that is cut, what one rank has of it."""
    found = (_look_at("weight", name, None, piece.tensor) for name, piece in optimizer.weight_pieces().items())
    return _first_of(ranks, next(filter(None, found), None))


def _first_of(ranks: Ranks, own: Finding | None) -> Finding | None:
    """What all ranks report: of several findings that in the first micro-batch, or on the first rank."""
    told = [finding for each in ranks.gather_values(asdict(own) if own else None) if (finding := _from_told(each))]
    return min(told, key=lambda finding: finding.micro_batch or 0, default=None)


def _from_told(told: dict[str, Any] | None) -> Finding | None:
    return Finding(**{**told, "shape": tuple(told["shape"])}) if told else None


def diagnose(model: GPT, optimizer: MixedPrecisionAdamW, stepper: Stepper, before: RunState) -> Finding | None:
    """What is first not finite in the step after `before`, a weight before all else; None where nothing is.

    Needs the weights and the loss scale that the step had, leaves everything as it was, and raises what the step
    itself may raise. Ranks look together, each at its own micro-batches.
    """
    return nonfinite_weight(optimizer, stepper.ranks) or _watched_step(model, optimizer, stepper, before)


def _watched_step(model: GPT, optimizer: MixedPrecisionAdamW, stepper: Stepper, before: RunState) -> Finding | None:
    watch = _Watch()
    try:
        with _uncompiled(model), watch.on(model):
            for number in stepper.own_micro_batches:
                watch.micro_batch = number
                stepper.micro_batch(before, number)
                if found := _first_of(stepper.ranks, watch.found):
                    return found
        return _look_at_sums(optimizer, stepper.ranks)
    finally:
        optimizer.abandon_step()


class _Watch:
    """Remembers the first tensor that is not finite, in the order in which the step makes them."""

    def __init__(self) -> None:
        self.found: Finding | None = None
        self.micro_batch = 0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Watch every module's output, the gradients of these, and those of the weights."""
        with ExitStack() as handles:
            for path, module in model.named_modules():
                hook = functools.partial(self._after_module, path)
                handles.callback(module.register_forward_hook(hook).remove)
            for name, weight in model.named_parameters():
                hook = functools.partial(self._see, "gradient", name)
                handles.callback(weight.register_hook(hook).remove)
            yield

    def _after_module(self, path: str, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        for part in tensors_in(output):
            self._see("output", path, part)
            if part.requires_grad:
                part.register_hook(functools.partial(self._see, "gradient of output", path))

    def _see(self, kind: Kind, where: str, tensor: Tensor) -> None:
        self.found = self.found or _look_at(kind, where, self.micro_batch, tensor)


@torch.no_grad()
def _look_at(kind: Kind, where: str, micro_batch: int | None, tensor: Tensor) -> Finding | None:
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    lowest, highest = torch.aminmax(tensor)  # NaN where a value is NaN; takes no memory, which may be short
    if lowest.isfinite() and highest.isfinite():
        return None
    count = int(tensor.isfinite().logical_not().sum())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Finding(kind, where, micro_batch, count, tensor.numel(), tuple(tensor.shape), dtype)


def _look_at_sums(optimizer: MixedPrecisionAdamW, ranks: Ranks) -> Finding | None:
    """Of gradients that are finite in each micro-batch."""
    norm = optimizer.finish_gradients()
    sums = {name: master.grad for name, master in optimizer.masters.items() if master.grad is not None}
    found = (_look_at("sum of gradients", name, None, gradient) for name, gradient in sums.items())
    if first := _first_of(ranks, next(filter(None, found), None)):
        return first
    return None if norm.isfinite() else Finding("norm of gradients", "", None, 0, 0, (), "float32")


@contextmanager
def _uncompiled(model: GPT) -> Iterator[None]:
    plan, compiled = applied_plan(model), any(map(is_compiled, model.layers))
    if compiled:
        apply_recompute(model, plan)
    try:
        yield
    finally:
        if compiled:
            apply_recompute(model, plan, compiled=True)
