"""Apply a plan to a model: the one place where a mode becomes policies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from megaselect.compatibility import without_compiler
from megaselect.models.gpt.compiled import compile_layer, is_compiled, uncompile_layer
from megaselect.models.gpt.layer_policy import (
    INSIDE_FULL,
    REMADE,
    give_policy,
    layer_policy,
    outputs_remade_in,
    policy_of,
    without_regions,
)
from megaselect.models.gpt.layers import HiddenDropout
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.checkpoint import checkpointed
from megaselect.recomputation.plan import Chunk, RecomputePlan, no_recompute
from megaselect.recomputation.policy import LayerPolicy, StackPolicy


def apply_recompute(model: GPT, plan: RecomputePlan, compiled: bool = False) -> None:
    """Set the policies of the stack and of every layer; may be called again with another plan."""
    for layer, (block, policy) in enumerate(zip(model.blocks, _policies(plan), strict=True)):
        modules = plan.modules[layer]
        if compiled:
            compile_layer(block, without_regions(policy, modules), modules)
        else:
            uncompile_layer(block)
            give_policy(block, policy)
    _save_embedding_mask(model, not plan.recompute_embedding_mask)
    model.policy = ChunkedStack(plan)


def _policies(plan: RecomputePlan) -> list[LayerPolicy]:
    inside_full = {layer for chunk in plan.chunks if chunk.checkpointed for layer in _numbers(chunk)}
    return [
        INSIDE_FULL if layer in inside_full else layer_policy(modules, layer)
        for layer, modules in enumerate(plan.modules)
    ]


def applied_plan(model: GPT) -> RecomputePlan:
    """What apply_recompute last applied; everything kept where it has not been at the model."""
    policy = model.policy
    return policy.plan if isinstance(policy, ChunkedStack) else no_recompute(len(model.layers))


@contextlib.contextmanager
def keeping_all(model: GPT) -> Iterator[None]:
    """Inside, the model recomputes nothing."""
    stack, before = model.policy, [policy_of(block) for block in model.blocks]
    model.policy = StackPolicy()
    _save_embedding_mask(model, True)
    for block in model.blocks:
        give_policy(block, LayerPolicy())
    try:
        yield
    finally:
        model.policy = stack
        _save_embedding_mask(model, not applied_plan(model).recompute_embedding_mask)
        for block, policy in zip(model.blocks, before, strict=True):
            give_policy(block, policy)


def _save_embedding_mask(model: GPT, save: bool) -> None:
    for module in model.embedding_dropout.modules():
        if isinstance(module, HiddenDropout):
            module.save_mask = save


class ChunkedStack(StackPolicy):
    """Runs the stack chunk by chunk; of a checkpointed chunk only the input is kept."""

    def __init__(self, plan: RecomputePlan) -> None:
        self.plan = plan

    def run(self, layers: Sequence[nn.Module], x: Tensor, sample_index: Tensor) -> Tensor:
        """The last layer's output [s, b, h]."""
        for chunk in self.plan.chunks:
            if chunk.checkpointed:
                run = _ChunkRun([layers[layer] for layer in _numbers(chunk)], chunk.first)
                x = checkpointed(chunk.name, run, x, sample_index)
            else:
                for layer in _numbers(chunk):
                    x = self._run_layer(layer, layers[layer], x, sample_index)
        return x

    def _run_layer(self, number: int, layer: nn.Module, x: Tensor, sample_index: Tensor) -> Tensor:
        modules = self.plan.modules[number] & REMADE
        if not modules or is_compiled(layer):  # what a compiled layer makes again is in its graph
            return layer(x, sample_index)
        return _run_remaking(number, layer, modules, x, sample_index)


@without_compiler  # where somebody compiles the whole model: what is traced keeps these outputs
def _run_remaking(number: int, layer: nn.Module, modules: frozenset[str], x: Tensor, sample_index: Tensor) -> Tensor:
    with outputs_remade_in(layer, number, modules):
        out: Tensor = layer(x, sample_index)
    return out


class _ChunkRun:
    """No frozen dataclass: torch.compile around the whole model could not bring one over a graph break."""

    def __init__(self, layers: Sequence[nn.Module], first: int) -> None:
        self.layers, self.first = layers, first

    def __call__(self, x: Tensor, sample_index: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, sample_index)
        return x

    def modules_inside(self) -> Iterator[tuple[str, nn.Module]]:
        """(path, module) of everything that runs in the chunk."""
        for number, layer in enumerate(self.layers, self.first):
            yield from ((f"layers.{number}.{path}", module) for path, module in layer.named_modules())


def _numbers(chunk: Chunk) -> range:
    return range(chunk.first, chunk.first + chunk.count)
