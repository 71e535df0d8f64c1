"""Ways to save less for backward that can be put on a model of anybody's as it is: ours, and what others have."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import megaselect
from benchmarks.any_model_shapes import Batch
from benchmarks.plain_gpt import keep_products
from megaselect.ledger.layer_paths import layer_paths

NONE, HF_FULL, SAC, REMAT = "none", "HF full", "SAC", "torch_remat"
OURS = ("selective", "attention", "full")
BUDGETED = "megaselect"  # names of contenders of ours with a budget begin so
REMAT_ATTENTION = "sdpa that torch_remat saves"
PRODUCTS = ("Linear", "Conv1D")  # modules, by their classes' names

Forward = Callable[..., Any]
Way = Callable[[nn.Module, Batch], Forward]
"""Changes the model that it gets for good, and gives what is called in its place."""


def is_ours(name: str) -> bool:
    """Whether a contender of this name is a plan of Megaselect's."""
    return name in OURS or name.startswith(BUDGETED)


def unchanged(model: nn.Module, _: Batch) -> Forward:
    """Saves everything."""
    return model


def ours(setting: str, model: nn.Module, _: Batch) -> Forward:
    """megaselect.recompute."""
    megaselect.recompute(model, setting)
    return model


def within_bytes(saved: int, model: nn.Module, batch: Batch) -> Forward:
    """megaselect.recompute with a budget of bytes that are saved for backward."""
    megaselect.recompute(model, saved=saved, batch=batch)
    return model


def checkpointed(model: nn.Module, _: Batch, **settings: Any) -> Forward:
    """A checkpoint a layer, by the library's own switch, which has had two names."""
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False, **settings})
    return model


def saving_products(model: nn.Module, batch: Batch) -> Forward:
    """torch's selective checkpoint around each layer: matrix products and fused attention are kept."""
    contexts = functools.partial(create_selective_checkpoint_contexts, keep_products)
    return checkpointed(model, batch, context_fn=contexts)


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Path -> layer, in the order of the model."""
    paths = set(layer_paths(model).values()) - {""}
    return {path: module for path, module in model.named_modules() if path in paths}


def rematerialized(model: nn.Module, _: Batch) -> Forward:
    """torch_remat: a checkpoint a layer, in which modules that are products and fused attention are regions that save.

    Products that are no modules run again: eager attention's two.
    """
    import torch_remat

    checkpoint = torch_remat.checkpoint(recompute_state_hooks=(_RandomState(),))
    for path, layer in layers_of(model).items():
        for name, module in layer.named_modules():
            if type(module).__name__ in PRODUCTS:
                module.forward = _saved_region(module.forward, f"{path}.{name}")
        layer.forward = checkpoint(layer.forward)
    if model.config._attn_implementation == "sdpa":
        _register_saved_attention()
        model.set_attn_implementation(REMAT_ATTENTION)
    return model


class _RandomState:
    """torch_remat leaves the random state to its user."""

    @staticmethod
    def snapshot() -> Any:
        return torch.get_rng_state(), torch.cuda.get_rng_state_all()

    @staticmethod
    def restore(state: Any) -> None:
        torch.set_rng_state(state[0])
        torch.cuda.set_rng_state_all(state[1])


def _saved_region(function: Forward, name: str) -> Forward:
    """Its result is saved, for what runs again after it."""
    import torch_remat

    run = torch_remat.region(function, name, recompute=False)

    def saved(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        torch_remat.recompute_needs_tensor(result[0] if isinstance(result, tuple) else result)
        return result

    return saved


def _register_saved_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(REMAT_ATTENTION, _saved_region(sdpa_attention_forward, "attention"))
    AttentionMaskInterface.register(REMAT_ATTENTION, sdpa_mask)


EAGER: dict[str, Way] = {
    NONE: unchanged,
    HF_FULL: checkpointed,
    SAC: saving_products,
    REMAT: rematerialized,
    **{setting: functools.partial(ours, setting) for setting in OURS},
}
