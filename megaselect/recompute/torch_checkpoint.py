"""What torch.utils.checkpoint keeps where no saved-tensor hook of an outer context sees it.

Inside a non-reentrant region torch's own hooks are the inner ones. They keep nothing: what they see will be made again.
The cache of a selective-checkpoint context keeps results of operators, and a region's function keeps what it closes
over. While `watched` is active all three are shown to a watcher; what is computed and kept stays as it is. The names
that are replaced exist, with the same meaning, from torch 2.4 on; the caches' layout changed after 2.11, both are read.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.utils import checkpoint
from torch.utils._pytree import tree_leaves


class Watcher(Protocol):
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
def watched(watcher: Watcher) -> Iterator[None]:
    """Show `watcher` the regions that run inside. Not for several threads at a time."""
    caching = checkpoint._CachingTorchDispatchMode
    with (
        replaced(checkpoint, "_checkpoint_without_reentrant_generator", functools.partial(_with_inputs, watcher)),
        replaced(checkpoint, "_checkpoint_hook", functools.partial(_with_watched_hook, watcher)),
        replaced(caching, "__torch_dispatch__", functools.partial(_with_watched_cache, watcher)),
    ):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, replacement: Callable[[Any], Any]) -> Iterator[None]:
    """owner.name is replacement(owner.name) inside."""
    original = getattr(owner, name)
    setattr(owner, name, replacement(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def _with_inputs(watcher: Watcher, original: Callable[..., Iterator[None]]) -> Callable[..., Iterator[None]]:
    """The generator that checkpoint() runs a region in, announced."""

    def generator(region: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[None]:
        watcher.before_inputs(_tensors([_closed_over(region), kwargs]))  # it closes over kwargs itself
        return original(region, *args, **kwargs)

    return generator


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


def _with_watched_hook(watcher: Watcher, original: Any) -> Any:
    """The class whose hooks a region runs under, with the watcher told first."""

    class WatchedHook(original):
        def __init__(self, frame: Any) -> None:
            super().__init__(frame)
            pack = self.pack_hook

            def watched_pack(tensor: Tensor) -> Any:
                watcher.would_keep(tensor)
                return pack(tensor)

            self.pack_hook = watched_pack

        def __enter__(self) -> None:
            watcher.enter_region()
            super().__enter__()

        def __exit__(self, *args: object) -> None:
            super().__exit__(*args)
            watcher.leave_region()

    return WatchedHook


def _with_watched_cache(watcher: Watcher, original: Callable[..., Any]) -> Callable[..., Any]:
    """A cache's method that runs an operator and may keep its results, with the watcher told of those."""

    def dispatch(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = original(self, func, types, args, kwargs)
        if not _is_traced():
            for tensor in _last_cached(self.storage.get(func)):
                watcher.caches(tensor, func.overloadpacket.__name__)
        return out

    return torch._disable_dynamo(dispatch, recursive=True)


def _is_traced() -> bool:
    """Whether a compiler runs this to see what it would do: nothing is kept then."""
    is_making_graph = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
    return is_making_graph or TracingContext.try_get() is not None


def _last_cached(entries: Any) -> list[Tensor]:
    """The tensors of an operator's latest entry: of a list in torch 2.11, of a dictionary by call number later."""
    if not entries:
        return []
    latest = entries[-1] if isinstance(entries, list) else next(reversed(entries.values()))
    return _tensors([getattr(leaf, "val", None) for leaf in tree_leaves(latest)])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
