"""The device meshes of this process's models: they hold connections to other ranks, which must be closed in the end."""

from __future__ import annotations

from typing import Any

from megaselect.compatibility import forget_groups

_made: list[Any] = []


def remember(mesh: Any) -> None:
    """Of a model that is about to be used."""
    _made.append(mesh)


def let_go() -> None:
    """Nobody uses their models any more."""
    while _made:
        forget_groups(_made.pop())
