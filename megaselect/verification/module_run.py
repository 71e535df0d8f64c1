"""One forward and backward pass of somebody's module, watched."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megaselect import ledger
from megaselect.batches import LossFunction, called_with, loss_of
from megaselect.ledger.rerun import Rerun
from megaselect.verification.attributes import values_on
from megaselect.verification.differences import LOSS
from megaselect.verification.module_state import Snapshot, leaves_of, own_copy
from megaselect.verification.step_watch import StepWatch
from megaselect.verification.switched_off import Regions, switched_off


@dataclass(frozen=True)
class ModuleRun:
    """gradients: by the parameters' names, and as `input 0` and so on those of inputs that ask for one.

    state: buffers, and numbers and tensors in attributes of modules, after the step. regions: calls of torch's
    checkpoint, counted where it was switched off. flagged_ran: whether an innermost module with gradient_checkpointing
    set ran as it is without it. error: what backward raised, or None.
    """

    loss: Tensor
    gradients: dict[str, Tensor | None]
    state: dict[str, Tensor | None]
    saved_bytes: int
    watch: StepWatch
    regions: int
    flagged_ran: bool
    error: Exception | None

    @property
    def rerun(self) -> Rerun:
        """What ran again in backward."""
        return self.watch.rerun

    @property
    def values(self) -> dict[str, Tensor | None]:
        """The loss, then the gradients."""
        return {LOSS: self.loss, **self.gradients}


def run_module(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFunction | None,
    start: Snapshot,
    checkpointing: bool = True,
    compiled: bool = False,
) -> ModuleRun:
    """From the state of `start`. checkpointing: False switches torch's off. compiled: a compiler's graph is part of it.

    Then it runs uncompiled: the compiler gives up, for good, what it is called for while operators are watched.
    """
    start.put_back()
    batch = own_copy(batch, model)
    leaves = {**start.parameters(), **leaves_of(batch)}
    for leaf in leaves.values():
        leaf.grad = None
    watch = StepWatch(model, start.meet)
    with contextlib.ExitStack() as stack:
        flagged = stack.enter_context(_calls_of_flagged(model))
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(watch)
        regions = Regions()
        # Entered twice: what a ledger and this replace in torch must be put back in the order of a stack.
        off = contextlib.nullcontext if checkpointing else functools.partial(switched_off, model, regions)
        with ledger.record(model) as saved, off():
            loss = loss_of(called_with(model, batch), loss_fn)
        with off():
            error = _backward(loss)
    gradients = {name: leaf.grad for name, leaf in leaves.items()}
    state = _state_of(model, start)
    return ModuleRun(loss.detach(), gradients, state, saved.total, watch, regions.count, bool(flagged), error)


def _state_of(model: nn.Module, start: Snapshot) -> dict[str, Tensor | None]:
    """Of the model, and with its name before theirs, of what the loss function is made of."""
    state: dict[str, Tensor | None] = {}
    for prefix, root in {"": model, **start.loss_modules}.items():
        state.update({name: buffer.detach().clone() for name, buffer in root.named_buffers(prefix=prefix)})
        state.update(values_on(root, prefix))
    return state


@contextlib.contextmanager
def _calls_of_flagged(model: nn.Module) -> Iterator[list[None]]:
    """An entry for each call of a module with gradient_checkpointing set, and of no module around such a one."""
    calls: list[None] = []
    flagged = [module for module in model.modules() if is_flagged(module)]
    innermost = [module for module in flagged if not any(map(is_flagged, list(module.modules())[1:]))]
    handles = [module.register_forward_pre_hook(lambda *_: calls.append(None)) for module in innermost]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def is_flagged(module: nn.Module) -> bool:
    """Whether somebody has switched checkpointing on there, as transformers does."""
    return bool(getattr(module, "gradient_checkpointing", False))


def _backward(loss: Tensor) -> Exception | None:
    """What it raised. A loss without a graph has no backward."""
    if not loss.requires_grad:
        return None
    try:
        loss.backward()
    except Exception as error:  # whatever a user's function raises is what they want to know
        return error
    return None


def runs_compiled(model: nn.Module, batch: Any, loss_fn: LossFunction | None, start: Snapshot) -> bool:
    """Whether a compiler's graph is part of a step. While operators are watched none is: it runs uncompiled then."""
    start.put_back()
    nodes, seen = [loss_of(call(model, batch), loss_fn).grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name().startswith("CompiledFunction"):
            return True
        nodes += [parent for parent, _ in node.next_functions]
    return False


def call(model: nn.Module, batch: Any) -> Any:
    """model(batch) for a tensor, model(*batch) for a tuple or list, model(**batch) for a mapping; of a copy of it."""
    return called_with(model, own_copy(batch, model))
