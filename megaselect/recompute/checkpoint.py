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

from megaselect.recompute.ledger import scope


def checkpointed(name: str, region: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """region(*tensors), keeping only `tensors` for backward. Without gradients it is the plain call."""
    if not torch.is_grad_enabled():
        return region(*tensors)
    guard = _RngGuard(name, region, tensors[0].device)
    with scope(name):
        return checkpoint(region, *tensors, use_reentrant=False, preserve_rng_state=False, context_fn=guard.contexts)


def product_of_rebuilt(
    name: str, product: nn.Module, made: Tensor, rebuild: Callable[..., Tensor], source: Tensor
) -> Tensor:
    """product(made), keeping `source` for backward but not `made`, which is rebuild(source) and is made again there.

    The product may be anything that keeps its input: a wrapped linear layer too. What made `made` is left alone: its
    own backward uses what its own forward kept, so only the product's copy of it goes.
    """
    if not torch.is_grad_enabled():
        return product(made)
    return checkpointed(name, _ProductOfRebuilt(product, made, rebuild), source)


class _ProductOfRebuilt:
    """The region: its first run takes what is there, and lets go of it; every later run makes it again."""

    def __init__(self, product: nn.Module, made: Tensor, rebuild: Callable[..., Tensor]) -> None:
        self.product, self.rebuild = product, rebuild
        self.made: Tensor | None = made
        self.requires_grad = made.requires_grad

    def __call__(self, source: Tensor) -> Tensor:
        made, self.made = self.made, None
        if made is None:
            with torch.no_grad():
                made = self.rebuild(source)
            made.requires_grad_(self.requires_grad)  # else the product would keep less than in its first run
        return self.product(made)

    def modules_inside(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, module) of everything that runs in the region."""
        yield from self.product.named_modules()


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
        self.before = self._states()
        yield
        self.moved = not all(map(torch.equal, self.before, self._states()))
        if self.moved:
            _warn_of_random_numbers(self.name, self.region)
        else:
            self.before = []  # else 5 kB a region would be held until backward

    @contextlib.contextmanager
    def _replay(self) -> Iterator[None]:
        if not self.moved:
            yield
            return
        current = self._states()
        self._restore(self.before)
        try:
            yield
        finally:
            self._restore(current)

    def _states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def _restore(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self.device)


def _warn_of_random_numbers(name: str, region: Callable[..., Tensor]) -> None:
    """Once a region: which modules may be the ones that drew."""
    modules = getattr(region, "modules_inside", lambda: ())()
    drawing = [
        path or type(module).__name__
        for path, module in modules
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    ]
    suspects = f" ({', '.join(drawing)})" if drawing else ""
    warnings.warn(
        f"{name} draws random numbers{suspects}: its RNG state is kept and replayed when it is computed again",
        stacklevel=2,
    )
