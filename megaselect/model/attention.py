"""Causal self-attention. Shapes: s sequence, b micro-batch, h hidden, a heads, d = h/a head size.

The layout is [s, b, h] with q, k and v interleaved per head ([a][3][d], as Megatron-LM has it): then q, k and v are
views [b*a, s, d] of one tensor, which batched products take without a copy, and all three cost 6sbh bytes together.
In [b, s, h] the hidden copies would cost 10sbh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from megaselect.kernels.dropout_mask import SITES_PER_LAYER, Plane, drop_threshold
from megaselect.kernels.softmax_dropout import softmax_dropout_value
from megaselect.model.policy import LayerPolicy

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class CoreAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d)), dropout, times v."""

    def __init__(self, config: ModelConfig, seed: int, layer: int, head_offset: int = 0) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        site = layer * SITES_PER_LAYER + head_offset
        self.plane = Plane(seed, site, drop_threshold(config.attention_dropout_p))
        self.backend = config.kernel_backend
        self.policy = LayerPolicy()

    def forward(self, qkv: Tensor, sample_index: Tensor) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, 3*a*d]."""
        sequence, batch, width = qkv.shape
        heads = qkv.view(sequence, batch * self.heads, 3, width // (3 * self.heads))
        query, key, value = (part.transpose(0, 1) for part in heads.unbind(2))  # [b*a, s, d]
        return self.policy.core_attention(self._attend, query, key, value, sample_index)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, sample_index: Tensor) -> Tensor:
        # The scale is the product's alpha, applied to its fp32 accumulator: fp16 scores cannot overflow before it.
        unread = query.new_empty(1, 1, 1)
        scores = torch.baddbmm(unread, query, key.transpose(1, 2), beta=0, alpha=self.scale)  # [b*a, s, s]
        return softmax_dropout_value(
            scores.unflatten(0, (-1, self.heads)),
            value.unflatten(0, (-1, self.heads)),
            sample_index,
            self.plane if self.training else self.plane._replace(threshold=0),
            store_probs=self.policy.store_probs,
            store_mask=self.policy.store_attention_mask,
            backend=self.backend,
        )


class Attention(nn.Module):
    """qkv product, core attention, projection (whose bias the dropout after it adds)."""

    def __init__(self, config: ModelConfig, seed: int, layer: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.core = CoreAttention(config, seed, layer)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, sample_index: Tensor) -> Tensor:
        """[s, b, h] to [s, b, h]."""
        return self.projection(self.core(self.qkv(x), sample_index))
