"""Which packages a Python lacks, before anything imports them. Needs nothing but Python."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from megaselect.errors import MegaselectError

# What the runner imports -> the package that brings it. Triton comes with torch, where there is one.
NEEDED = {"torch": "torch", "numpy": "numpy", "pydantic": "pydantic", "yaml": "PyYAML"}


class MissingPackagesError(MegaselectError):
    """This Python lacks packages that the benchmarks import."""


def missing(modules: Iterable[str]) -> list[str]:
    """Those that this Python cannot find; nothing is imported."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def refuse_without_packages() -> None:
    """Raises MissingPackagesError, which names all that are missing and how to get them."""
    names = " ".join(NEEDED[module] for module in missing(NEEDED))
    if names:
        raise MissingPackagesError(
            f"this Python lacks {names}: python -m pip install {names}; where there is no network, bring wheels from "
            "make gpu-wheels (docs/gpu.md)"
        )
