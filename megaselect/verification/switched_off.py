"""Checkpointing switched off at its deepest place, however a model came by it: the reference to compare with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils import checkpoint

from megaselect.compatibility import regions_run_by, replaced
from megaselect.models.gpt.apply_plan import keeping_all
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.any_model import plans_of


class Regions:
    """count: calls of torch's checkpoint while it was switched off."""

    def __init__(self) -> None:
        self.count = 0

    def around(self, *_: Any) -> Iterator[None]:
        """In place of what torch's checkpoint runs around a region without reentrant autograd: nothing."""
        self.count += 1
        yield

    def apply(self, region: Callable[..., Any], _: bool, *args: Any) -> Any:
        """In place of the autograd function of the reentrant form: the plain call."""
        self.count += 1
        return region(*args)


@contextlib.contextmanager
def switched_off(model: nn.Module, regions: Regions) -> Iterator[None]:
    """torch's checkpoint keeps everything inside, in all its forms, and so do plans and a model of ours.

    regions: counts torch's. Everything that ends in torch.utils.checkpoint is reached, under whatever name it was
    imported. Autograd functions of somebody's own are not. Not for several threads at a time.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(regions_run_by(regions.around))
        stack.enter_context(replaced(checkpoint, "CheckpointFunction", lambda _: regions))
        for plan in plans_of(model):
            stack.enter_context(plan.switched_off())
        for module in model.modules():
            if isinstance(module, GPT):
                stack.enter_context(keeping_all(module))
        yield
