"""Models of transformers, and the ways to save less for backward that can be put on them as they are.

Shapes: b batch, s sequence, h hidden. All weights and activations are fp32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import megaselect
from benchmarks.plain_gpt import keep_products
from megaselect.ledger.layer_paths import layer_paths

NONE, HF_FULL, SAC, REMAT = "none", "HF full", "SAC", "torch_remat"
OURS = ("selective", "attention", "full")
DROPOUT, BUDGET, SEED = 0.1, 0.5, 7
REMAT_ATTENTION = "sdpa that torch_remat saves"

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Sizes:
    """Of a model and its batch."""

    layers: int
    hidden: int
    heads: int
    sequence: int
    batch: int
    vocabulary: int

    @property
    def activation(self) -> int:
        """s·b·h, the elements of a layer's input."""
        return self.sequence * self.batch * self.hidden


SIZES = Sizes(layers=4, hidden=512, heads=8, sequence=256, batch=2, vocabulary=4096)
SMALL_SIZES = Sizes(layers=4, hidden=32, heads=2, sequence=8, batch=1, vocabulary=64)  # operators cost next to nothing


class Shape(NamedTuple):
    """make: sizes -> a model that trains, with random weights. counts: the setting that is judged."""

    make: Callable[[Sizes], nn.Module]
    counts: str
    has_scores: bool = False


def _gpt2(attention: str, sizes: Sizes) -> nn.Module:
    """torch has no fused attention with dropout on a CPU: sdpa goes without, and keeps the hidden dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = GPT2Config(
        n_layer=sizes.layers,
        n_embd=sizes.hidden,
        n_head=sizes.heads,
        n_positions=sizes.sequence,
        vocab_size=sizes.vocabulary,
        attn_pdrop=DROPOUT if attention == "eager" else 0.0,
        resid_pdrop=DROPOUT,
        embd_pdrop=DROPOUT,
        use_cache=False,  # a cache of keys and values would be filled in training too
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
    )
    return _with_weights(GPT2LMHeadModel, settings)


def _llama(sizes: Sizes) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = LlamaConfig(
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads // 2,
        intermediate_size=3 * sizes.hidden,
        max_position_embeddings=sizes.sequence,
        vocab_size=sizes.vocabulary,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    return _with_weights(LlamaForCausalLM, settings)


def _with_weights(make: Callable[[Any], nn.Module], settings: Any) -> nn.Module:
    """The same weights every time; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make(settings).train()


SHAPES = {
    "gpt2": Shape(functools.partial(_gpt2, "eager"), "attention", has_scores=True),
    "gpt2-sdpa": Shape(functools.partial(_gpt2, "sdpa"), "selective"),
    "llama": Shape(_llama, "selective"),
}


def batch_of(sizes: Sizes) -> dict[str, Tensor]:
    """Random tokens, which are their own labels: int64 [b, s]."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.sequence), generator=generator)
    return {"input_ids": tokens, "labels": tokens}


# Ways. Each changes the model that it gets for good, and gives what is called in its place.


def ours(setting: str, model: nn.Module) -> Forward:
    """megaselect.recompute."""
    megaselect.recompute(model, setting)
    return model


def _checkpointed(model: nn.Module, **settings: Any) -> Forward:
    """By the library's own switch, which has had two names."""
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False, **settings})
    return model


def _sac(model: nn.Module) -> Forward:
    return _checkpointed(model, context_fn=functools.partial(create_selective_checkpoint_contexts, keep_products))


def _remat(model: nn.Module) -> Forward:
    """torch_remat: a checkpoint a layer, in which linear modules and fused attention are regions that save.

    Products that are no modules run again: eager attention's two.
    """
    import torch_remat

    hooks = (_RandomState(),)

    def checkpoint(function: Forward, *args: Any, **kwargs: Any) -> Any:
        return torch_remat.checkpoint(recompute_state_hooks=hooks)(function)(*args, **kwargs)

    _checkpointed(model)
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module._gradient_checkpointing_func = checkpoint
    modules = dict(model.named_modules())
    for path, layer in layer_paths(model).items():
        if layer and type(modules[path]).__name__ in ("Linear", "Conv1D"):
            modules[path].forward = _saved_region(modules[path].forward, path)
    if model.config._attn_implementation == "sdpa":
        _register_saved_attention()
        model.set_attn_implementation(REMAT_ATTENTION)
    return model


class _RandomState:
    """torch_remat leaves the random state to its user."""

    snapshot = staticmethod(torch.get_rng_state)
    restore = staticmethod(torch.set_rng_state)


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


def _compiled(budget: float, model: nn.Module) -> Forward:
    """torch.compile; budget: the share of activations that the partitioner may keep, 1 being its default.

    Dropout draws as it does without the compiler: masks can be compared. A new graph for each budget.
    """
    run = torch.compile(model, options={"fallback_random": True})

    def within_budget(**batch: Tensor) -> Any:
        with memory_budget(budget):
            return run(**batch)

    return within_budget


@contextlib.contextmanager
def memory_budget(budget: float) -> Iterator[None]:
    """torch's setting of this name, which has no public home. Raises ImportError where it is not there."""
    from torch._functorch import config

    if not hasattr(config, "activation_memory_budget"):
        raise ImportError("this torch has no activation memory budget")
    with config.patch(activation_memory_budget=budget):
        yield


EAGER: dict[str, Callable[[nn.Module], Forward]] = {
    NONE: lambda model: model,
    HF_FULL: _checkpointed,
    SAC: _sac,
    REMAT: _remat,
    **{setting: functools.partial(ours, setting) for setting in OURS},
}
COMPILED: dict[str, Callable[[nn.Module], Forward]] = {
    "compiled": functools.partial(_compiled, 1.0),
    f"compiled, budget {BUDGET:g}": functools.partial(_compiled, BUDGET),
}
