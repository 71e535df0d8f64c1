"""From recompute settings to a plan: modules of each layer that are recomputed, and chunks of layers. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megaselect.errors import RecomputeError
from megaselect.recompute_modules import MODULES

if TYPE_CHECKING:
    from megaselect.config import RecomputeConfig


@dataclass(frozen=True)
class Chunk:
    """Layers first..first+count-1 in a row; `checkpointed`: only their input is kept and they run again in backward."""

    first: int
    count: int
    checkpointed: bool

    @property
    def name(self) -> str:
        """As the ledger shows it: layers.3 or layers.0-3."""
        return f"layers.{self.first}" if self.count == 1 else f"layers.{self.first}-{self.first + self.count - 1}"


@dataclass(frozen=True)
class RecomputePlan:
    """modules[l]: what selective recomputes in layer l. chunks: the whole stack, in order."""

    mode: str
    modules: tuple[frozenset[str], ...]
    chunks: tuple[Chunk, ...]
    recompute_embedding_mask: bool


def make_plan(settings: RecomputeConfig, num_layers: int) -> RecomputePlan:
    """Raises ConfigError for layers that the model does not have, RecomputeError where N exceeds its layers.

    Mode `auto` is planned by megaselect/planning/auto.py, from a budget.
    """
    assert settings.mode != "auto"
    selected = settings.selected_layers(num_layers) if settings.mode != "none" else ()
    nothing: frozenset[str] = frozenset()
    if settings.mode == "full":
        chunks = _full_chunks(settings, selected, num_layers)
        return RecomputePlan("full", (nothing,) * num_layers, chunks, recompute_embedding_mask=True)
    recomputed = frozenset(settings.modules) if settings.mode == "selective" else nothing
    modules = tuple(recomputed if layer in selected else nothing for layer in range(num_layers))
    plain = tuple(Chunk(layer, 1, False) for layer in range(num_layers))
    return RecomputePlan(settings.mode, modules, plain, recompute_embedding_mask="dropout" in recomputed)


def _full_chunks(settings: RecomputeConfig, selected: Sequence[int], num_layers: int) -> tuple[Chunk, ...]:
    """Checkpointed chunks over runs of selected layers, plain layers between them."""
    if settings.num_layers is not None and settings.num_layers > num_layers:
        raise RecomputeError(
            f"recompute.num_layers = {settings.num_layers} exceeds model.num_layers = {num_layers}: "
            f"use at most {num_layers}"
        )
    length = settings.num_layers or 1
    if settings.method == "block":  # Megatron-LM's meaning: the first N layers one by one, the rest kept
        selected, length = selected[:length], 1
    elif settings.method == "sqrt":  # Chen et al. 2016: about sqrt(L) chunks of about sqrt(L) layers
        length = max(round(math.sqrt(num_layers)), 1)
    chosen = set(selected)
    chunks: list[Chunk] = []
    for layer in range(num_layers):
        last = chunks[-1] if chunks else None
        if layer in chosen and last and last.checkpointed and last.count < length:
            chunks[-1] = Chunk(last.first, last.count + 1, True)
        else:
            chunks.append(Chunk(layer, 1, layer in chosen))
    return tuple(chunks)


def no_recompute(num_layers: int, mode: str = "none") -> RecomputePlan:
    """The plan of `none`."""
    nothing: frozenset[str] = frozenset()
    plain = tuple(Chunk(layer, 1, False) for layer in range(num_layers))
    return RecomputePlan(mode, (nothing,) * num_layers, plain, recompute_embedding_mask=False)


def describe_plan(plan: RecomputePlan) -> str:
    """`layers 0-3 full, in chunks of 2; layers 4-11 dropout gelu; layer 12 none`."""
    parts: list[tuple[str, int, int]] = []  # what is done, first and last layer
    for chunk in plan.chunks:
        done = _done_in(chunk, plan)
        last = chunk.first + chunk.count - 1
        if parts and parts[-1][0] == done:
            parts[-1] = (done, parts[-1][1], last)
        else:
            parts.append((done, chunk.first, last))
    return "; ".join(
        f"layer {first} {done}" if first == last else f"layers {first}-{last} {done}" for done, first, last in parts
    )


def _done_in(chunk: Chunk, plan: RecomputePlan) -> str:
    if chunk.checkpointed:
        return "full" if chunk.count == 1 else f"full, in chunks of {chunk.count}"
    return " ".join(name for name in MODULES if name in plan.modules[chunk.first]) or "none"
