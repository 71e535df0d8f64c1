"""The settings of `megaselect.recompute` by name, for a whole model or for parts of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from megaselect.errors import RecomputeError
from megaselect.recomputation.tape.operators import ATTENTION, PRODUCTS, SCORES, Operator
from megaselect.recomputation.tape.values import Place

NONE, FULL = "none", "full"
# What each setting saves of the operators that could run again; `none` saves all.
_SAVED = {"selective": PRODUCTS | ATTENTION, "attention": (PRODUCTS - SCORES) | ATTENTION, FULL: frozenset[str]()}
SETTINGS = (NONE, *_SAVED)
Setting = str | Mapping[str, str]


def saves(setting: str) -> Callable[[Operator, Place], bool]:
    """Whether the results of an operator are saved where backward reads them."""
    if setting == NONE:
        return lambda *_: True
    saved = _SAVED[setting]
    return lambda operator, _: operator.name in saved


def settings_of(model: nn.Module, setting: Setting) -> dict[str, str]:
    """Path of a module -> what holds inside it, up to modules inside with a setting of their own. "" is the model.

    setting: a name; or names by paths of modules, in which * stands for any characters: the first that fits counts.
    Raises RecomputeError for an unknown name, and for a path that is no module's.
    """
    if isinstance(setting, str):
        return {"": _checked(setting)}
    if not isinstance(setting, Mapping) or not setting:
        raise RecomputeError(
            f"recompute: {setting!r} is no setting: give one of {_names()}, or them by paths of modules"
        )
    paths = [path for path, _ in model.named_modules()]
    found = {"": NONE}
    for pattern, name in reversed(list(setting.items())):
        fitting = [path for path in paths if fnmatchcase(path, pattern)]
        if not fitting:
            near = difflib.get_close_matches(pattern, paths, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise RecomputeError(f"recompute: {pattern!r} is the path of no module of {type(model).__name__}{hint}")
        found |= dict.fromkeys(fitting, _checked(name))
    return found


def _checked(name: Any) -> str:
    if name not in SETTINGS:
        raise RecomputeError(f"recompute: {name!r} is no setting: use one of {_names()}")
    return str(name)


def _names() -> str:
    return ", ".join(SETTINGS)
