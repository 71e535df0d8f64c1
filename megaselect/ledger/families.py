"""What a family of models tells the ledger about itself. A family registers where its package is imported."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor, nn

SHARED = "sample indices"  # one tensor that every layer saves: it belongs to none


class ModelFamily(Protocol):
    """The ledger asks every family that is registered; a family answers for its own modules alone."""

    def tensor_name(
        self, model: nn.Module, module: str, tensor: Tensor, taken: list[str], is_region: bool
    ) -> str | None:
        """The documented name of what `module` (its path in `model`; the region's where is_region) saves.

        taken: the names of what this call of the module saved before. None: not the family's model, or not its module.
        """

    def is_unused_counter(self, module: nn.Module, tensor: Tensor) -> bool:
        """Whether this is the place of a random state that `module` saves and nothing reads: no activation."""

    def changed_by_hooks(self, module: nn.Module) -> Iterable[str]:
        """Names of the module's children that would run otherwise with a hook on them than they do without."""


FAMILIES: list[ModelFamily] = []


def documented_name(
    model: nn.Module, module: str, tensor: Tensor, taken: list[str], is_region: bool
) -> str | None:  # fmt: skip
    """The name that the model's family has for it; None where no family knows it. Arguments as in ModelFamily."""
    names = (family.tensor_name(model, module, tensor, taken, is_region) for family in FAMILIES)
    return next((name for name in names if name is not None), None)


def is_unused_counter(model: nn.Module, module: str, tensor: Tensor) -> bool:
    """Whether a family says so of what the module at the path `module` saves."""
    try:
        found = model.get_submodule(module)
    except AttributeError:  # the name of a scope or of a chunk of layers, where no module is
        return False
    return any(family.is_unused_counter(found, tensor) for family in FAMILIES)
