"""Names of kept tensors: in our model as docs/recompute.md has them, else after what made one: a module or operator."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from megaselect.compatibility import WRAPPED_MODULE, graph_of
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


def name_of(model: nn.Module, module: str, tensor: Tensor, taken: list[str], is_region: bool) -> str | None:
    """The documented name of what `module` (its path; the region's where is_region) keeps.

    taken: the names of what this call of the module kept before. None: in somebody else's model, or of somebody else's
    module in ours. In compiled layers kept tensors are numbered.
    """
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


def label_of(module: str, layer: str) -> str:
    """What to call a module: its path within its layer, without the names of checkpoint wrappers."""
    parts = [part for part in module.removeprefix(layer).split(".") if part and part != WRAPPED_MODULE]
    return ".".join(parts) or ("block" if layer else "model")


def output_name(maker: str) -> str:
    """Name of a module's output, by its label."""
    return f"{maker} output"


def input_name(keeper: str, keyword: str = "") -> str:
    """Name of an input that the module keeps, by its label, and by keyword where it was given so."""
    return f"{keeper} input {keyword}".rstrip()


def op_name(keeper: str, op: str) -> str:
    """Name of an operator's result, which the module `keeper` keeps."""
    return f"{keeper}: {op} output"


def number_name(keeper: str, tensor: Tensor, number: int) -> str:
    """Name of what nothing is known of; number: of tensors that the keeper kept before."""
    return f"{keeper}: {'mask' if tensor.dtype == torch.bool else 'tensor'} {number}"


def maker_op(tensor: Tensor) -> str:
    """The operator that made a tensor, or what it is a view of, as autograd knows it: softmax. Empty: it does not."""
    node = graph_of(tensor)
    while node is not None and node.name().startswith("UnsafeView"):  # of a product's result, by another name
        node = node.next_functions[0][0]
    if node is None:
        return ""
    name = re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
