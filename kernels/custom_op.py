"""Registers the fused ops with torch, each of them once, whichever name its file was imported by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.library import CustomOpDef

_registered_by: dict[str, str] = {}  # op -> module


def custom_op(name: str, mutates_args: Iterable[str] = ()) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """torch.library.custom_op for megaselect::NAME, as a decorator.

    Raises ImportError where another module has registered the op. Where the tree's root is on sys.path, a file of this
    folder is two modules, kernels.x and megaselect.kernels.x, and torch lets the second replace the first one's op.
    """

    def register(function: Callable[..., Any]) -> CustomOpDef:
        second = function.__module__
        first = _registered_by.setdefault(name, second)
        if first != second:
            raise ImportError(
                f"{second} is the file that was imported as {first} before, and would register the op "
                f"megaselect::{name} again; import megaselect.kernels.{second.rpartition('.')[2]} alone",
                name=second,
            )
        return torch.library.custom_op(f"megaselect::{name}", function, mutates_args=mutates_args)

    return register
