"""Run a region without keeping what is inside it, and run it again in backward.

torch's non-reentrant checkpoint, without its saving of RNG state: our dropout masks are a function, not a state. A
region may hold somebody else's module that draws random numbers, though. So every run of a region compares the RNG
state before and after; where it moved, the second run starts from the same state. Nothing is ever silently wrong.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megaselect.ledger import scope
from megaselect.recomputation.random_states import all_equal, random_states

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def checkpointed(name: str, region: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """region(*tensors), keeping only `tensors` for backward. Without gradients it is the plain call."""
    if not torch.is_grad_enabled():
        return region(*tensors)
    guard = _RngGuard(name, region, tensors[0].device)
    with scope(name):
        return checkpoint(region, *tensors, use_reentrant=False, preserve_rng_state=False, context_fn=guard.contexts)


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
        self.before = random_states(self.device)
        yield
        self.moved = not all_equal(self.before, random_states(self.device))
        if self.moved:
            _warn_of_random_numbers(self.name, self.region)
        else:
            self.before = []  # else 5 kB a region would be held until backward

    @contextlib.contextmanager
    def _replay(self) -> Iterator[None]:
        if not self.moved:
            yield
            return
        current = random_states(self.device)
        self._restore(self.before)
        try:
            yield
        finally:
            self._restore(current)

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if len(states) > 1:
            torch.cuda.set_rng_state(states[1], self.device)


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
