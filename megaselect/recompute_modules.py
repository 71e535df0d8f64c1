"""What selective can recompute: one declaration for each module, from which all that depends on a module follows.

Names of tensors are those of docs/recompute.md, of operators torch's. Imports nothing of ours: everybody may import it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SOFTMAX, ATTENTION_MASK, HIDDEN_MASKS = "softmax", "attention's mask", "hidden masks"  # what backward operators make


@dataclass(frozen=True)
class RecomputeModule:
    """A part of every layer that backward makes again from what is saved besides.

    drops: tensors that are not saved. saves_instead: those that are, in their place.
    needs_scores: there is nothing of it where attention writes no scores. in_attention: what it costs depends on the
    other modules in attention; the costs of all others add up.
    runs_again: operator -> how often a layer calls it in backward. made_inside: what our backward operators make
    themselves, where no call shows it. remakes: tensors that are written again, and read.
    products: matrix products that are computed again.
    compiled_op: the operator that a compiled layer's policy runs again. compiled: fields that differ there.
    """

    name: str
    drops: frozenset[str]
    saves_instead: frozenset[str] = frozenset()
    needs_scores: bool = False
    in_attention: bool = False
    runs_again: Mapping[str, int] = field(default_factory=dict)
    made_inside: frozenset[str] = frozenset()
    remakes: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    compiled_op: str | None = None
    compiled: Mapping[str, Any] = field(default_factory=dict)


_OF_SCORES = frozenset({"scores", "softmax statistics", "probs", "dropped probs", "attention dropout mask"})
_NORMED, _NORM_STATISTICS = ("ln1 output", "ln2 output"), ("ln1 statistics", "ln2 statistics")

_DECLARED = (
    RecomputeModule(
        "softmax",
        drops=frozenset({"probs", "dropped probs"}),
        saves_instead=frozenset({"scores", "softmax statistics"}),
        needs_scores=True,
        in_attention=True,
        made_inside=frozenset({SOFTMAX}),
    ),
    RecomputeModule(
        "dropout",
        drops=frozenset({"attention dropout mask", "dropped probs", "projection dropout mask", "MLP dropout mask"}),
        in_attention=True,
        made_inside=frozenset({ATTENTION_MASK, HIDDEN_MASKS}),
    ),
    RecomputeModule(
        "core_attn",  # Megatron-LM's name for scores, softmax, dropout and the product with v
        drops=_OF_SCORES,
        needs_scores=True,
        in_attention=True,
        runs_again={"aten.baddbmm": 1, "megaselect.softmax_dropout_value": 1},
        made_inside=frozenset({SOFTMAX, ATTENTION_MASK}),
        remakes=("scores",),
        products=("scores", "context"),
        compiled_op="aten.baddbmm",
        # There an op is run again or saved whole: the context's op, which returns its statistics too, is saved.
        compiled={
            "drops": _OF_SCORES - {"softmax statistics"},
            "saves_instead": frozenset({"softmax statistics"}),
            "products": ("scores",),
        },
    ),
    RecomputeModule(
        "layernorm",
        drops=frozenset(_NORMED),
        runs_again={"megaselect.layer_norm": 2},
        remakes=_NORMED,
        compiled_op="megaselect.layer_norm",
        compiled={"drops": frozenset({*_NORMED, *_NORM_STATISTICS})},
    ),
    RecomputeModule(
        "gelu",
        drops=frozenset({"gelu output"}),
        runs_again={"megaselect.gelu": 1},
        remakes=("gelu output",),
        compiled_op="megaselect.gelu",
    ),
)
RECOMPUTE_MODULES = {module.name: module for module in _DECLARED}
MODULES = tuple(RECOMPUTE_MODULES)  # the names, in the order in which they are shown


def declared(names: Collection[str], attention: str, compiled: bool = False) -> Iterator[RecomputeModule]:
    """The declarations behind names, as they are for a kind of attention: those that have something to do there."""
    for module in _DECLARED:
        if module.name in names and (attention == "unfused" or not module.needs_scores):
            yield dataclasses.replace(module, **module.compiled) if compiled else module


def tensors_saved(everything: Collection[str], modules: Collection[RecomputeModule]) -> set[str]:
    """What is left of `everything` that `none` saves, with what is saved in the place of what is dropped."""
    dropped = {name for module in modules for name in module.drops}
    return {*everything, *(name for module in modules for name in module.saves_instead)} - dropped


def attention_sets() -> list[tuple[str, ...]]:
    """Sets of the modules in attention, the empty one first; none has a module that another of it covers."""
    sets: list[tuple[str, ...]] = [()]
    for module in _DECLARED:
        if module.in_attention:
            sets += [(*names, module.name) for names in sets if not any(_covers(module, name) for name in names)]
    return sets


def _covers(module: RecomputeModule, name: str) -> bool:
    other = RECOMPUTE_MODULES[name]
    return other.drops | other.saves_instead <= module.drops


# What `none` never saves: it stands in the place of something else.
ONLY_INSTEAD = frozenset(
    name for module in _DECLARED for name in module.saves_instead | module.compiled.get("saves_instead", frozenset())
)
OTHER_MODULES = tuple(module.name for module in _DECLARED if not module.in_attention)
