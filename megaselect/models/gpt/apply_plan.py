"""Apply a plan to a model: the one place where a mode becomes policies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from megaselect.models.gpt.compiled import compile_layer, uncompile_layer
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.checkpoint import checkpointed, linear_of_recomputed
from megaselect.recomputation.plan import Chunk, RecomputePlan, no_recompute
from megaselect.recomputation.policy import LayerPolicy, Region, StackPolicy


def apply_recompute(model: GPT, plan: RecomputePlan, compiled: bool = False) -> None:
    """Set the policies of the stack and of every layer; may be called again with another plan."""
    inside_full = {layer for chunk in plan.chunks if chunk.checkpointed for layer in _numbers(chunk)}
    for layer, block in enumerate(model.blocks):
        modules = plan.modules[layer]
        policy = INSIDE_FULL if layer in inside_full else layer_policy(modules, layer)
        if compiled:
            compile_layer(block, _without_regions(policy, modules), modules)
        else:
            uncompile_layer(block)
            block.set_policy(policy)
    model.policy = ChunkedStack(not plan.recompute_embedding_mask, plan.chunks, plan)


def applied_plan(model: GPT) -> RecomputePlan:
    """What apply_recompute last applied; everything kept where it has not been at the model."""
    policy = model.policy
    if isinstance(policy, ChunkedStack) and policy.plan:
        return policy.plan
    return no_recompute(len(model.layers))


@dataclass(frozen=True)
class SelectiveLayer(LayerPolicy):
    """Recomputes `modules` of layer number `layer` in backward; softmax and dropout by the flags of their ops alone."""

    modules: frozenset[str] = frozenset()
    layer: int = 0

    def region(self, module: str, place: str, run: Region, *tensors: Tensor) -> Tensor:
        """run(*tensors); where the module is recomputed, without saving what is inside."""
        if module not in self.modules:
            return run(*tensors)
        return checkpointed(f"layers.{self.layer}.{place}", run, *tensors)

    def linear(self, module: str, linear: nn.Module, made: Tensor, recompute: Region, source: Tensor) -> Tensor:
        """linear(made); where the module is recomputed, without saving `made`."""
        if module not in self.modules:
            return linear(made)
        return linear_of_recomputed(f"layers.{self.layer}", linear, made, recompute, source)


def layer_policy(modules: frozenset[str], layer: int) -> LayerPolicy:
    """What layer number `layer` keeps when selective recomputes `modules`."""
    save_masks = "dropout" not in modules
    if "core_attn" in modules:  # what the op keeps lives inside its region only: the least is best
        return SelectiveLayer(False, False, save_masks, modules=modules, layer=layer)
    return SelectiveLayer("softmax" not in modules, save_masks, save_masks, modules=modules, layer=layer)


def _without_regions(policy: LayerPolicy, modules: frozenset[str]) -> LayerPolicy:
    """What the policy's ops keep, for a compiled layer: a recomputed layernorm needs an op of its own there."""
    flags = (policy.save_probs, policy.save_attention_mask, policy.save_hidden_masks)
    return LayerPolicy(*flags, fuse_layernorm="layernorm" not in modules)


# Inside a chunk that runs again, what an op keeps lives for one chunk's backward only. Scores instead of probs, mask
# and dropped probs make that working set 2as²b instead of 5as²b, and the first run writes less.
INSIDE_FULL = LayerPolicy(save_probs=False, save_attention_mask=False, save_hidden_masks=False)


@dataclass(frozen=True)
class ChunkedStack(StackPolicy):
    """Runs the stack chunk by chunk; of a checkpointed chunk only the input is kept."""

    chunks: tuple[Chunk, ...] = ()
    plan: RecomputePlan | None = None

    def run(self, layers: Sequence[nn.Module], x: Tensor, sample_index: Tensor) -> Tensor:
        """The last layer's output [s, b, h]."""
        for chunk in self.chunks:
            run = _ChunkRun([layers[layer] for layer in _numbers(chunk)], chunk.first)
            x = checkpointed(chunk.name, run, x, sample_index) if chunk.checkpointed else run(x, sample_index)
        return x


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
