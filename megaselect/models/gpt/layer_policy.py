"""What one layer saves for backward: flags of its ops, a region around attention's core, and outputs made again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from megaselect.models.gpt.attention import CoreAttention
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.layers import HiddenDropout, run_fused
from megaselect.recomputation.checkpoint import checkpointed
from megaselect.recomputation.policy import LayerPolicy, Region
from megaselect.recomputation.remade_outputs import outputs_remade


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


REMADE = frozenset({"layernorm", "gelu"})  # recompute modules that are modules of the layer too

# Inside a chunk that runs again, what an op keeps lives for one chunk's backward only. Scores instead of probs, mask
# and dropped probs make that working set 2as²b instead of 5as²b, and the first run writes less.
INSIDE_FULL = LayerPolicy(save_probs=False, save_attention_mask=False, save_hidden_masks=False)


def layer_policy(modules: frozenset[str], layer: int) -> LayerPolicy:
    """What layer number `layer` keeps when selective recomputes `modules`."""
    save_masks = "dropout" not in modules
    if "core_attn" in modules:  # what the op keeps lives inside its region only: the least is best
        return SelectiveLayer(False, False, save_masks, modules=modules, layer=layer)
    return SelectiveLayer("softmax" not in modules, save_masks, save_masks, modules=modules, layer=layer)


def without_regions(policy: LayerPolicy, modules: frozenset[str]) -> LayerPolicy:
    """What the policy's ops keep, for a compiled layer: a recomputed layernorm needs an op of its own there."""
    flags = (policy.save_probs, policy.save_attention_mask, policy.save_hidden_masks)
    return LayerPolicy(*flags, fuse_layernorm="layernorm" not in modules)


def give_policy(layer: nn.Module, policy: LayerPolicy) -> None:
    """Have the ops of the layer save what the policy says, whoever has wrapped it or something in it."""
    for module in layer.modules():
        if isinstance(module, CoreAttention):
            module.policy = policy
        elif isinstance(module, HiddenDropout):
            module.save_mask, module.fuse_layernorm = policy.save_hidden_masks, policy.fuse_layernorm


def policy_of(layer: nn.Module) -> LayerPolicy:
    """What give_policy was last given; to save everything where it has not been at the layer."""
    cores = (module for module in layer.modules() if isinstance(module, CoreAttention))
    return next((core.policy for core in cores), LayerPolicy())


def outputs_remade_in(layer: nn.Module, number: int, modules: frozenset[str]) -> AbstractContextManager[None]:
    """Inside, what the layer's norms and its GELU return is not saved, as far as `modules` names them."""
    block = next((module for module in layer.modules() if isinstance(module, Block)), None)
    named = {} if block is None else _remakable(block)
    kinds = {name: named[name] for name in modules if name in named}
    if block is None or not kinds:
        return nullcontext()
    unhooked = [block.ln2] if run_fused(block.attention_dropout, block.ln2) else []
    return outputs_remade(f"layers.{number}", kinds, unhooked)


def _remakable(block: Block) -> dict[str, Sequence[nn.Module]]:
    gelu = getattr(block.mlp, "gelu", None)  # none in somebody else's
    return {"layernorm": (block.ln1, block.ln2), "gelu": () if gelu is None else (gelu,)}
