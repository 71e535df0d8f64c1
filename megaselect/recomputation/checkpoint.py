"""Run a region without keeping what is inside it, and run it again in backward.

torch's non-reentrant checkpoint, without its saving of RNG state: our dropout masks are a function, not a state. A
region may hold somebody else's module that draws random numbers, though. So every run of a region compares the RNG
state before and after; where it moved, the second run starts from the same state. Nothing is ever silently wrong.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megaselect.compatibility import real_tensors
from megaselect.errors import RecomputeError
from megaselect.ledger import scope

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def checkpointed(name: str, region: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """region(*tensors), keeping only `tensors` for backward. Without gradients it is the plain call."""
    if not torch.is_grad_enabled():
        return region(*tensors)
    guard = _RngGuard(name, region, tensors[0].device)
    with scope(name):
        return checkpoint(region, *tensors, use_reentrant=False, preserve_rng_state=False, context_fn=guard.contexts)


def linear_of_recomputed(
    name: str, linear: nn.Module, made: Tensor, recompute: Callable[..., Tensor], source: Tensor
) -> Tensor:
    """linear(made), keeping `source` for backward but not `made`, which is recompute(source) and is made again there.

    The linear layer may be anything that keeps its input: a wrapped one too. What made `made` is left alone: its own
    backward uses what its own forward kept, so only the linear layer's copy of it goes. Backward raises RecomputeError
    where `recompute` draws random numbers.
    """
    if not torch.is_grad_enabled():
        return linear(made)
    return checkpointed(name, _LinearOfRecomputed(name, linear, made, recompute), source)


class _LinearOfRecomputed:
    """The region: its first run takes what is there, and lets go of it; every later run makes it again."""

    def __init__(self, name: str, linear: nn.Module, made: Tensor, recompute: Callable[..., Tensor]) -> None:
        self.name, self.linear, self.recompute = name, linear, recompute
        self.made: Tensor | None = made
        self.requires_grad = made.requires_grad

    def __call__(self, source: Tensor) -> Tensor:
        made, self.made = self.made, None
        if made is None:
            made = self._recomputed(source)
            if self.requires_grad:  # else the linear would keep less than in its first run
                made = _NotALeaf.apply(made, torch.empty(0, requires_grad=True))
        return self.linear(made)

    def _recomputed(self, source: Tensor) -> Tensor:
        """Raises RecomputeError where the making draws random numbers: its first run, outside, had others."""
        before = _rng_states(source.device)
        with torch.no_grad():
            made = self.recompute(source)
        if not _all_equal(before, _rng_states(source.device)):
            raise RecomputeError(
                f"{self.name}: {_described(self.recompute)} draws random numbers, so it cannot be recomputed from its "
                "input: leave layernorm out of --recompute-modules, or use --recompute full"
            )
        return made

    def modules_inside(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, module) of everything that runs in the region."""
        yield from self.linear.named_modules()


class _NotALeaf(torch.autograd.Function):
    """Has a tensor require grad as one that was computed does: a linear may write into its input, though not a leaf's.

    The anchor requires grad and is not read.
    """

    @staticmethod
    def forward(ctx: Any, made: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(made)
        return made

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        return None, None


class _RngGuard:
    """Notices that a region drew random numbers, and makes its second run draw the same."""

    def __init__(self, name: str, region: Callable[..., Tensor], device: torch.device) -> None:
        self.name, self.region, self.device = name, region, device
        self.before: list[Tensor] = []
        self.moved = False

    def contexts(self) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """What torch's checkpoint enters around the first and around the second run."""
        return self._watch(), self._replay()

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        self.before = _rng_states(self.device)
        yield
        self.moved = not _all_equal(self.before, _rng_states(self.device))
        if self.moved:
            _warn_of_random_numbers(self.name, self.region)
        else:
            self.before = []  # else 5 kB a region would be held until backward

    @contextlib.contextmanager
    def _replay(self) -> Iterator[None]:
        if not self.moved:
            yield
            return
        current = _rng_states(self.device)
        self._restore(self.before)
        try:
            yield
        finally:
            self._restore(current)

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)


def _rng_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if device.type == "cuda" and torch.cuda.is_initialized():  # else the tensors are fake
        states.append(torch.cuda.get_rng_state(device))
    return states


def _all_equal(before: list[Tensor], now: list[Tensor]) -> bool:
    with real_tensors():
        return all(map(torch.equal, before, now))


def _described(recompute: Callable[..., Tensor]) -> str:
    return (
        type(recompute).__name__
        if isinstance(recompute, nn.Module)
        else getattr(recompute, "__name__", repr(recompute))
    )


def _warn_of_random_numbers(name: str, region: Callable[..., Tensor]) -> None:
    """Once a region: which modules may be the ones that drew."""
    modules = getattr(region, "modules_inside", lambda: ())()
    drawing = [
        path or type(module).__name__ for path, module in modules if isinstance(module, DROPOUTS) and module.p > 0
    ]
    suspects = f" ({', '.join(drawing)})" if drawing else ""
    warnings.warn(
        f"{name} draws random numbers{suspects}: its RNG state is kept and replayed when it is computed again",
        stacklevel=2,
    )
