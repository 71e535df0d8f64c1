"""Names of kept tensors, as docs/recompute.md has them, from the module that kept one and what it looks like."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaselect.model.attention import CoreAttention, FusedCoreAttention, SdpaCoreAttention, UnfusedCoreAttention
from megaselect.model.block import Block
from megaselect.model.gpt import GPT
from megaselect.recompute.compiled import is_compiled

# What a module of our model keeps when it keeps one activation. The name is the place that made it.
INPUTS = {
    "attention.qkv": "ln1 output",
    "attention.projection": "context",
    "mlp.fc1": "ln2 output",
    "mlp": "fc1 output",
    "mlp.fc2": "gelu output",
    "ln1": "block input",
    "ln2": "ln2 input",
    "final_layernorm": "final layernorm input",
    "token_embedding": "token indices",
}
MASKS = {
    "attention_dropout": "projection dropout mask",
    "mlp_dropout": "MLP dropout mask",
    "embedding_dropout": "embedding dropout mask",
}
STATISTICS = {"ln1": "ln1 statistics", "ln2": "ln2 statistics", "final_layernorm": "final layernorm statistics"}


SHARED = "sample indices"  # one tensor that every layer keeps: it belongs to none


def name_of(model: nn.Module, module: str, tensor: Tensor, pinned_bytes: int, taken: list[str], is_region: bool) -> str:
    """A name for what `module` (its path; the region's where is_region) keeps, with pinned_bytes behind it.

    taken: the module's names so far. In somebody else's model and in compiled layers kept tensors are numbered.
    """
    if not isinstance(model, GPT):
        return f"tensor {len(taken)}"
    if tensor.dtype == torch.int64 and module != "token_embedding":
        return SHARED if module else "targets"
    if is_region:
        return "block input"
    if not module:
        return (
            "log-sum-exp"
            if tensor.dim() == 1
            else "logits"
            if "final layernorm output" in taken
            else "final layernorm output"
        )
    submodule = model.get_submodule(module)
    if isinstance(submodule, Block):
        return f"tensor {len(taken)}" if is_compiled(submodule) else _name_in_block(tensor, taken)
    place = module.split(".", 2)[2] if module.startswith("layers.") else module
    if isinstance(submodule, CoreAttention):
        return _name_in_core_attention(submodule, tensor, pinned_bytes, taken)
    if tensor.dtype == torch.int8:
        return MASKS[place]
    if place in STATISTICS and INPUTS[place] in taken:
        return STATISTICS[place]
    return INPUTS[place]


def is_unused_counter(model: nn.Module, module: str, tensor: Tensor) -> bool:
    """Whether this is the place of a random state that torch's attention keeps on a GPU, though it drops nothing.

    At most 16 bytes each, more or fewer of them with torch's version: no activation.
    """
    is_counter = tensor.dtype in (torch.int64, torch.uint64) and tensor.numel() <= 2
    return is_counter and isinstance(dict(model.named_modules()).get(module), SdpaCoreAttention)


def _name_in_block(tensor: Tensor, taken: list[str]) -> str:
    """What the op of dropout, residual and layernorm keeps: its output first."""
    if tensor.dtype == torch.int8:
        return MASKS["attention_dropout"]
    return "ln2 statistics" if "ln2 input" in taken else "ln2 input"


def _name_in_core_attention(core: CoreAttention, tensor: Tensor, pinned_bytes: int, taken: list[str]) -> str:
    if tensor.dtype == torch.int8:
        return "attention dropout mask"
    if pinned_bytes > tensor.numel() * tensor.element_size():  # a view of what one product made for all three
        return "q, k, v"
    if not isinstance(core, UnfusedCoreAttention):
        return _name_in_flash_style(core, tensor, taken)
    if tensor.dim() == 3:  # the op keeps its output first
        return "softmax statistics" if "context" in taken else "context"
    if not core.policy.store_probs:
        return "scores"
    return "dropped probs" if "probs" in taken else "probs"


def _name_in_flash_style(core: CoreAttention, tensor: Tensor, taken: list[str]) -> str:
    """Our op keeps qkv [s, b, a, 3, d], context and log-sum-exp in this order; torch's its context as [b, a, s, d]."""
    if tensor.dim() == 5:
        return "q, k, v"
    if isinstance(core, FusedCoreAttention):
        return "log-sum-exp" if "context" in taken else "context"
    return "context" if tensor.dim() == 4 else "log-sum-exp"
