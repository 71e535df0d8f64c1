"""Which operators of the forward pass ran again in backward, and their FLOPs, exactly. For any nn.Module.

An operator call of a backward pass counts as run again where forward code makes it. That is told by what is on the
Python stack between the call and the autograd engine:

- the second run of a region of torch's checkpoint, reentrant or not, selective or not (then the policy's cached
  results are no calls), and of everything that is built on it: ours is;
- what says so of itself, by `second_run` of remade.py: a recipe that makes one tensor again;
- a module, or any operator with gradients switched on: checkpoints that people write themselves, as autograd functions
  or with saved-tensor hooks.

What such code's own nested backward does is backward. Views (detach is one) and allocations, which compute nothing, are
left out. Not seen: what an operator makes again inside itself (our backward operators make softmax and masks so; their
arguments say it), and what a compiler has merged into one graph. With create_graph=True every operator of a Python
function's backward would count: record a plain backward.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from megaselect.compatibility import TorchDispatchMode, is_in_backward
from megaselect.ledger.remade import SECOND_RUNS

MODULE_CALL = nn.Module.__call__.__code__
_ENGINE = {torch.autograd.backward.__code__, torch.autograd.grad.__code__}


@dataclass
class Rerun:
    """What ran again: operator -> calls, and operator -> FLOPs where it holds a product. Names as `aten.mm`."""

    calls: Counter[str] = field(default_factory=Counter)
    flops_by_operator: Counter[str] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """Of all operators that ran again, 2 a multiply-add."""
        return self.flops_by_operator.total()


class RerunMode(TorchDispatchMode):
    """`with RerunMode() as mode: loss.backward()` fills mode.rerun. May be on during forward too: nothing counts there.

    Subclasses may look at every call through `calling` and `called`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rerun = Rerun()

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calling(op, args, kwargs)
        out = op(*args, **kwargs)
        if _computes(op):
            again = runs_forward_code(_getframe())
            if again:
                self._count(op, args, kwargs, out)
            self.called(op, args, kwargs, out, again)
        return out

    def calling(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`op` is about to run."""

    def called(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, again: bool) -> None:
        """`op` returned `out`; again: it did so in a second run."""

    def _count(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        name = operator_name(op)
        self.rerun.calls[name] += 1
        formula = _flop_formula(op)
        if formula:
            self.rerun.flops_by_operator[name] += formula(*args, **kwargs, out_val=out)


def operator_name(op: Any) -> str:
    """aten.mm for aten.mm.default."""
    return str(getattr(op, "overloadpacket", op))


def runs_forward_code(frame: FrameType | None) -> bool:
    """Whether what is on the stack at `frame` is a second run of forward code, as the module's docstring defines it."""
    if not is_in_backward():
        return False
    if torch.is_grad_enabled():
        return True
    second_run = _second_run()
    for code in _codes(frame):
        if code is MODULE_CALL or code in second_run or code in SECOND_RUNS:
            return True
        if code in _ENGINE:
            return False
    return False


def _codes(frame: FrameType | None) -> Iterator[CodeType]:
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


@functools.cache
def _second_run() -> set[CodeType]:
    """Where torch's checkpoint calls a region a second time, without and with a nested backward: seen, not named."""
    callers: list[CodeType] = []

    def region(x: Tensor) -> Tensor:
        callers.append(_getframe(1).f_code)
        return x.exp()

    def run() -> None:  # in a thread of its own, so that nobody's modes and hooks see it
        for use_reentrant in (False, True):
            x = torch.ones(1, requires_grad=True)
            checkpoint(region, x, use_reentrant=use_reentrant, preserve_rng_state=False).sum().backward()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return set(callers[1::2])


# Allocations; and the comparison by which a region of ours finds that no random numbers were drawn in it.
_COMPUTES_NOTHING = {
    getattr(torch.ops.aten, name)  # names of operators, which are public
    for name in ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "equal")
}


def _computes(op: Any) -> bool:
    return not getattr(op, "is_view", False) and getattr(op, "overloadpacket", op) not in _COMPUTES_NOTHING


def _flop_formula(op: Any) -> Callable[..., int] | None:
    packet = getattr(op, "overloadpacket", op)
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # torch has formulas for GPUs' alone
        return _sdpa_flops
    return flop_registry.get(packet)


def _sdpa_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)
