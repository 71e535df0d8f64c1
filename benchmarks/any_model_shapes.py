"""Models of transformers as they are, with random weights: what `megaselect.recompute` is measured on.

Shapes: b batch, s sequence, h hidden. All weights and activations are fp32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DROPOUT, SEED = 0.1, 7
FP32_BYTES = 4

Batch = dict[str, Tensor]


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
    def activation_bytes(self) -> int:
        """Of a layer's input, [b, s, h]: the 2sbh of papers, which count 16 bits a number."""
        return self.sequence * self.batch * self.hidden * FP32_BYTES


FULL_SIZES = Sizes(layers=2, hidden=512, heads=8, sequence=512, batch=1, vocabulary=4096)
QUICK_SIZES = Sizes(layers=2, hidden=64, heads=2, sequence=32, batch=2, vocabulary=128)
SMALL_SIZES = Sizes(layers=4, hidden=32, heads=2, sequence=8, batch=1, vocabulary=64)  # operators cost next to nothing


class Shape(NamedTuple):
    """make: sizes -> a model that trains. judged: the setting of ours that targets are about."""

    make: Callable[[Sizes], nn.Module]
    judged: str
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


def batch_of(sizes: Sizes, device: torch.device) -> Batch:
    """Random tokens, which are their own labels: int64 [b, s]."""
    generator = torch.Generator().manual_seed(SEED)
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, sizes.sequence), generator=generator).to(device)
    return {"input_ids": tokens, "labels": tokens}
