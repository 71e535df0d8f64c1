"""What torch.utils.checkpoint keeps where no saved-tensor hook of an outer context sees it.

Inside a non-reentrant region torch's own hooks are the inner ones. They keep nothing: what they see will be made again.
The cache of a selective-checkpoint context keeps results of operators, and a region's function keeps what it closes
over. While `watched` is active all three are shown to a observer; what is computed and kept stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

from megaselect.compatibility import cache_watched, region_hooks_watched, regions_run_by
from megaselect.trees import tensors_in


class RegionObserver(Protocol):
    """Told of each non-reentrant region, of what autograd would keep of it, and of what a cache keeps of it."""

    def before_inputs(self, closed_over: list[Tensor]) -> None:
        """A region's inputs will be kept next, by the hooks outside it; closed_over is kept by its function."""

    def enter_region(self) -> None:
        """The region's first run begins."""

    def leave_region(self) -> None:
        """It ends, or failed."""

    def would_keep(self, tensor: Tensor) -> None:
        """Autograd would keep `tensor` for backward; it will be made again instead."""

    def caches(self, tensor: Tensor, op: str) -> None:
        """A selective-checkpoint context keeps `tensor`, a result of the operator of this name."""


@contextlib.contextmanager
def watched(observer: RegionObserver) -> Iterator[None]:
    """Show `observer` the regions that run inside. Not for several threads at a time."""

    def announced(run: Callable[[], Iterator[None]], region: Any, kwargs: dict[str, Any]) -> Iterator[None]:
        observer.before_inputs(list(tensors_in([_closed_over(region), kwargs])))  # it closes over kwargs itself
        return run()

    with (
        regions_run_by(announced),
        region_hooks_watched(observer.enter_region, observer.would_keep, observer.leave_region),
        cache_watched(observer.caches),
    ):
        yield


def _closed_over(region: Callable[..., Any]) -> list[Any]:
    """What a function holds besides its code: partial arguments and the variables of its closure."""
    if isinstance(region, functools.partial):
        return [region.args, region.keywords, _closed_over(region.func)]
    cells = getattr(region, "__closure__", None) or ()
    held = []
    for cell in cells:
        with contextlib.suppress(ValueError):  # an empty cell: a variable that is not set yet
            held.append(cell.cell_contents)
    return held
