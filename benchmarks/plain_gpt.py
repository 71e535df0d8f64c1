"""The baseline: the same GPT as an average good user of PyTorch writes it, with nothing of Megaselect's inside.

Shapes: b micro-batch, s sequence, h hidden, a heads, d = h/a head size, V padded vocabulary. Layout [b, s, h].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaselect.config import ModelConfig

GRAPHS = 64


class PlainAttention(nn.Module):
    """Causal self-attention by matrix products and torch's softmax and dropout, or by torch's fused attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_dropout_p
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.sdpa = False

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """[b, s, h] to [b, s, h]; future: bool [s, s], where attention must not look."""
        batch, sequence, hidden = x.shape
        parts = self.qkv(x).split(hidden, dim=2)
        query, key, value = (part.view(batch, sequence, self.heads, -1).transpose(1, 2) for part in parts)
        dropout_p = self.dropout_p if self.training else 0.0
        if self.sdpa:
            context = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=True)
        else:
            scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
            probs = functional.softmax(scores.masked_fill(future, float("-inf")), dim=-1)
            context = functional.dropout(probs, dropout_p) @ value
        return self.projection(context.transpose(1, 2).reshape(batch, sequence, hidden))


class PlainBlock(nn.Module):
    """Pre-layernorm attention and MLP with residuals."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.attention = PlainAttention(config)
        self.ln2 = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_p)

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """[b, s, h] to [b, s, h]."""
        x = x + self.dropout(self.attention(self.ln1(x), future))
        return x + self.dropout(self.fc2(functional.gelu(self.fc1(self.ln2(x)), approximate="tanh")))


class PlainGPT(nn.Module):
    """Learned positions, tied head; the vocabulary is padded as Megaselect's is, so that the products are the same.

    run_layer: how a layer runs; replaced to checkpoint or compile it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.seq_length, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_p)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.run_layer: Callable[[nn.Module, Tensor, Tensor], Tensor] = call

    def use_sdpa(self, sdpa: bool) -> None:
        """Switch every layer's attention."""
        for layer in self.layers:
            layer.attention.sdpa = sdpa

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, an fp32 scalar, from int64 tokens and targets [b, s]."""
        sequence = tokens.shape[1]
        positions = torch.arange(sequence, device=tokens.device)
        future = torch.ones(sequence, sequence, dtype=torch.bool, device=tokens.device).triu_(1)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for layer in self.layers:
            x = self.run_layer(layer, x, future)
        logits = functional.linear(self.final_layernorm(x), self.token_embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def call(layer: nn.Module, x: Tensor, future: Tensor) -> Tensor:
    """As it is: everything is kept."""
    return layer(x, future)


def checkpointed(layer: nn.Module, x: Tensor, future: Tensor) -> Tensor:
    """torch.utils.checkpoint a layer."""
    return checkpoint(layer, x, future, use_reentrant=False)


def saving_products(layer: nn.Module, x: Tensor, future: Tensor) -> Tensor:
    """torch's selective checkpoint: matrix products and fused attention are kept, the rest runs again."""
    contexts = functools.partial(create_selective_checkpoint_contexts, keep_products)
    return checkpoint(layer, x, future, use_reentrant=False, context_fn=contexts)


def compiled(budget: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """torch.compile a layer; budget: the share of activations that the partitioner may keep, 1 being its default."""
    import torch._dynamo.config  # takes seconds

    # Graphs of one function: budgets, ways to attend, training or not, and shapes. Torch's own limit is 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    run = torch.compile(_compiled_layer, fullgraph=True)

    def within_budget(layer: nn.Module, x: Tensor, future: Tensor) -> Tensor:
        with torch._functorch.config.patch(activation_memory_budget=budget):
            return run(layer, x, future, f"budget {budget}")

    return within_budget


def _compiled_layer(layer: nn.Module, x: Tensor, future: Tensor, purpose: str) -> Tensor:
    if not purpose.startswith("budget"):  # looked at, so that graphs of different budgets are told apart
        raise ValueError(purpose)
    return layer(x, future)


_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def keep_products(_: Any, operation: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """A policy of torch's selective checkpoint: matrix products and fused attention are kept."""
    return CheckpointPolicy.MUST_SAVE if operation in _PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
