"""Apply a plan to a model: the one place where a mode becomes policies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from megaselect.model.gpt import GPT
from megaselect.model.policy import LayerPolicy, Region, StackPolicy
from megaselect.recompute.checkpoint import checkpointed
from megaselect.recompute.plan import Chunk, RecomputePlan


def apply_recompute(model: GPT, plan: RecomputePlan) -> None:
    """Set the policies of the stack and of every layer; may be called again with another plan."""
    inside_full = {layer for chunk in plan.chunks if chunk.checkpointed for layer in _numbers(chunk)}
    for layer, block in enumerate(model.layers):
        block.set_policy(INSIDE_FULL if layer in inside_full else layer_policy(plan.modules[layer], layer))
    model.policy = ChunkedStack(not plan.rebuild_embedding_mask, plan.chunks)


@dataclass(frozen=True)
class RebuildCoreAttention(LayerPolicy):
    """Keeps q, k and v, and runs scores, softmax, dropout and the product with V again (the paper's selective)."""

    layer: int = 0

    def core_attention(self, region: Region, *tensors: Tensor) -> Tensor:
        """The region without what is inside it."""
        return checkpointed(f"layers.{self.layer}.attention.core", region, *tensors)


def layer_policy(modules: frozenset[str], layer: int) -> LayerPolicy:
    """What layer number `layer` keeps when selective rebuilds `modules`."""
    store_hidden_masks = "dropout" not in modules
    if "core_attn" in modules:
        return RebuildCoreAttention(False, False, store_hidden_masks, layer)
    return LayerPolicy("softmax" not in modules, "dropout" not in modules, store_hidden_masks)


# Inside a chunk that runs again, what an op keeps lives for one chunk's backward only. Scores instead of probs, mask
# and dropped probs make that working set 2as²b instead of 5as²b, and the first run writes less.
INSIDE_FULL = LayerPolicy(store_probs=False, store_attention_mask=False, store_hidden_masks=False)


@dataclass(frozen=True)
class ChunkedStack(StackPolicy):
    """Runs the stack chunk by chunk; of a checkpointed chunk only the input is kept."""

    chunks: tuple[Chunk, ...] = ()

    def run(self, layers: Sequence[Callable[[Tensor, Tensor], Tensor]], x: Tensor, sample_index: Tensor) -> Tensor:
        """The last layer's output [s, b, h]."""
        for chunk in self.chunks:
            run = _ChunkRun([layers[layer] for layer in _numbers(chunk)], chunk.first)
            x = checkpointed(chunk.name, run, x, sample_index) if chunk.checkpointed else run(x, sample_index)
        return x


@dataclass(frozen=True)
class _ChunkRun:
    layers: Sequence[nn.Module]
    first: int

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
