"""How a user of transformers switches checkpointing on: the ways that its 5.23 has, as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

STAGES_OF_CONVNEXT = ("ConvNextLayer", "ConvNextV2Layer")  # transformers has no checkpointing for them


def plain(model: nn.Module) -> None:
    """No checkpointing."""


def reentrant(model: nn.Module) -> None:
    """A nested backward."""
    _enable(model, use_reentrant=True)


def non_reentrant(model: nn.Module) -> None:
    """The default."""
    _enable(model, use_reentrant=False)


def every_n_layers(model: nn.Module) -> None:
    """Every second layer alone."""
    _enable(model, use_reentrant=False, every_n_layers=2)


def offload(model: nn.Module) -> None:
    """The regions' inputs through save_on_cpu."""
    _enable(model, use_reentrant=False, offload=True)


WAYS: dict[str, Callable[[nn.Module], None]] = {
    "plain": plain,
    "non-reentrant": non_reentrant,
    "reentrant": reentrant,
    "every_n_layers": every_n_layers,
    "offload": offload,
}
# What verify finds in transformers 5.23 and 5.24, by check: the router's logits are gathered in the first run, which
# has no graph in the reentrant form, so that the loss that balances the experts has no gradient.
REAL_FAULTS = {(name, "reentrant"): "same bits" for name in ("mixtral", "qwen3_moe", "gpt_oss")}


def _enable(model: nn.Module, use_reentrant: bool, every_n_layers: int = 1, offload: bool = False) -> None:
    if model.supports_gradient_checkpointing:
        settings = {"use_reentrant": use_reentrant}
        model.activation_checkpointing_enable(settings, every_n_layers=every_n_layers, offload=offload)
        if offload and not torch.accelerator.is_available():
            _offload_without_pinning()
        return
    for layer in list(_layers(model))[::every_n_layers]:
        layer.forward = functools.partial(_region, layer.forward, use_reentrant, offload)


def _region(forward: Callable, use_reentrant: bool, offload: bool, x):
    if not offload:
        return checkpoint(forward, x, use_reentrant=use_reentrant)
    with save_on_cpu():
        return checkpoint(forward, x, use_reentrant=use_reentrant)


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if type(module).__name__ in STAGES_OF_CONVNEXT)


@functools.cache
def _offload_without_pinning() -> None:
    """transformers asks for pinned memory, which torch has with an accelerator alone; for the whole process."""
    from transformers import modeling_utils

    modeling_utils.save_on_cpu = lambda **_: save_on_cpu()
