"""Names of saved tensors, after what made one: a module or an operator. A family's own names: ledger/families.py."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from megaselect.compatibility import WRAPPED_MODULE, graph_of


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


def state_name(keeper: str) -> str:
    """Name of a random state that recipes of the module `keeper` draw from."""
    return f"{keeper}: random state"


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
