"""What the ledger is told of GPT: the names of docs/recompute.md, and the modules that hooks would change."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from megaselect.compatibility import WRAPPED_MODULE
from megaselect.ledger.families import SHARED
from megaselect.models.gpt.attention import CoreAttention, FusedCoreAttention, SdpaCoreAttention, UnfusedCoreAttention
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.compiled import is_compiled
from megaselect.models.gpt.layers import run_fused
from megaselect.models.gpt.model import GPT

# What a module of our model keeps when it keeps one activation. The name is the place that made it.
INPUTS = {
    "attention.qkv": "ln1 output",
    "attention.projection": "context",
    "mlp.fc1": "ln2 output",
    "mlp.gelu": "fc1 output",
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


class GptFamily:
    """See ModelFamily."""

    def tensor_name(
        self, model: nn.Module, module: str, tensor: Tensor, taken: list[str], is_region: bool
    ) -> str | None:
        """As docs/recompute.md has it. In compiled layers saved tensors are numbered."""
        if not isinstance(model, GPT):
            return None
        if tensor.dtype == torch.int64 and module != "token_embedding":
            return SHARED if module else "targets"
        if is_region:
            return "block input"
        if not module:
            return _name_in_loss(tensor, taken)
        submodule = model.get_submodule(module)
        if isinstance(submodule, Block):
            return f"tensor {len(taken)}" if is_compiled(submodule) else _name_in_block(tensor, taken)
        if isinstance(submodule, CoreAttention):
            return _name_in_core_attention(submodule, tensor, taken)
        return _name_by_place(_place(module), tensor, taken)

    def is_unused_counter(self, module: nn.Module, tensor: Tensor) -> bool:
        """torch's attention saves one on a GPU, though it drops nothing: at most 16 bytes, by torch's version."""
        is_counter = tensor.dtype in (torch.int64, torch.uint64) and tensor.numel() <= 2
        return is_counter and isinstance(module, SdpaCoreAttention)

    def changed_by_hooks(self, module: nn.Module) -> Iterable[str]:
        """All that a compiled layer holds would be compiled anew; a fused pair would run as two ops."""
        if is_compiled(module):
            return [name for name, _ in module.named_children()]
        if isinstance(module, Block) and run_fused(module.attention_dropout, module.ln2):
            return ["attention_dropout", "ln2"]
        return []


def _place(module: str) -> str:
    """attention.qkv for layers.3.attention.qkv, whether or not somebody wrapped the layer in a checkpoint."""
    parts = [part for part in module.split(".") if part != WRAPPED_MODULE]
    return ".".join(parts[2:] if parts[0] == "layers" else parts)


def _name_in_loss(tensor: Tensor, taken: list[str]) -> str:
    if tensor.dim() == 1:
        return "log-sum-exp"
    return "logits" if "final layernorm output" in taken else "final layernorm output"


def _name_by_place(place: str, tensor: Tensor, taken: list[str]) -> str | None:
    if tensor.dtype == torch.int8:
        return MASKS.get(place)
    name = INPUTS.get(place)
    if name in taken:
        return STATISTICS.get(place)
    return name


def _name_in_block(tensor: Tensor, taken: list[str]) -> str:
    """What the op of dropout, residual and layernorm keeps: its output first."""
    if tensor.dtype == torch.int8:
        return MASKS["attention_dropout"]
    return "ln2 statistics" if "ln2 input" in taken else "ln2 input"


def _name_in_core_attention(core: CoreAttention, tensor: Tensor, taken: list[str]) -> str:
    if tensor.dtype == torch.int8:
        return "attention dropout mask"
    if (
        tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    ):  # a view of what one product made for all three
        return "q, k, v"
    if not isinstance(core, UnfusedCoreAttention):
        return _name_in_flash_style(core, tensor, taken)
    if tensor.dim() == 3:  # the op keeps its output first
        return "softmax statistics" if "context" in taken else "context"
    if not core.policy.save_probs:
        return "scores"
    return "dropped probs" if "probs" in taken else "probs"


def _name_in_flash_style(core: CoreAttention, tensor: Tensor, taken: list[str]) -> str:
    """Our op keeps qkv [s, b, a, 3, d], context and log-sum-exp in this order; torch's its context as [b, a, s, d]."""
    if tensor.dim() == 5:
        return "q, k, v"
    if isinstance(core, FusedCoreAttention):
        return "log-sum-exp" if "context" in taken else "context"
    return "context" if tensor.dim() == 4 else "log-sum-exp"
