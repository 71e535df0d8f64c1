"""Causal self-attention. Shapes: s sequence, b micro-batch, h hidden, a heads, d = h/a head size.

The layout is [s, b, h] with q, k and v interleaved per head ([a][3][d], as Megatron-LM has it): then q, k and v are
views of one tensor, which batched products and our kernels take without a copy, and all three cost 6sbh bytes together.
In [b, s, h] the hidden copies would cost 10sbh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import SITES_PER_LAYER, Plane, drop_threshold
from megaselect.kernels.softmax_dropout import softmax_dropout_value
from megaselect.recomputation.policy import LayerPolicy

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class CoreAttention(nn.Module):
    """softmax(q kᵀ / sqrt(d)), dropout, times v. Subclasses differ in how, which shows in rounding and bytes alone.

    The number of heads follows from the width of qkv: a tensor-parallel rank holds some of them, from head_offset on.
    """

    kind: ClassVar[str]  # as model.attention names it

    def __init__(self, config: ModelConfig, seed: int, layer: int, head_offset: int = 0) -> None:
        super().__init__()
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scale = self.head_size**-0.5
        site = layer * SITES_PER_LAYER + head_offset
        self.plane = Plane(seed, site, drop_threshold(config.attention_dropout_p))
        self.backend = config.kernel_backend
        self.policy = LayerPolicy()

    def forward(self, qkv: Tensor, sample_index: Tensor) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, 3*a*d]."""
        sequence, batch, _ = qkv.shape
        plane = self.plane if self.training else self.plane._replace(threshold=0)
        return self.attend(qkv.view(sequence, batch, -1, 3, self.head_size), sample_index, plane)

    def attend(self, qkv: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, a, 3, d]."""
        raise NotImplementedError


class UnfusedCoreAttention(CoreAttention):
    """Batched products with the scores in memory, and one op for softmax, dropout and the product with v."""

    kind = "unfused"
    unread: Tensor

    def __init__(self, config: ModelConfig, seed: int, layer: int, head_offset: int = 0) -> None:
        super().__init__(config, seed, layer, head_offset)
        # What baddbmm would add to the product if it were told to. A buffer, since a graph would keep it for backward.
        self.register_buffer("unread", torch.empty(1, 1, 1), persistent=False)

    def attend(self, qkv: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, a, 3, d]."""
        query, key, value = (part.transpose(0, 1) for part in qkv.flatten(1, 2).unbind(2))  # [b*a, s, d]

        def region(query: Tensor, key: Tensor, value: Tensor, sample_index: Tensor) -> Tensor:
            return self._from_scores(query, key, value, sample_index, plane)

        return self.policy.region("core_attn", "attention.core", region, query, key, value, sample_index)

    def _from_scores(self, query: Tensor, key: Tensor, value: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
        # The scale is the product's alpha, applied to its fp32 accumulator: fp16 scores cannot overflow before it.
        scores = torch.baddbmm(self.unread, query, key.transpose(1, 2), beta=0, alpha=self.scale)  # [b*a, s, s]
        by_sample = (sample_index.shape[0], -1)
        return softmax_dropout_value(
            scores.unflatten(0, by_sample),
            value.unflatten(0, by_sample),
            sample_index,
            plane,
            save_probs=self.policy.save_probs,
            save_mask=self.policy.save_attention_mask,
            backend=self.backend,
        )


class FusedCoreAttention(CoreAttention):
    """Our flash-style op: scores and probs never reach memory, the masks are those of the unfused op."""

    kind = "fused"

    def attend(self, qkv: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, a, 3, d]."""
        return fused_attention(qkv, sample_index, plane, scale=self.scale, backend=self.backend)


class SdpaCoreAttention(CoreAttention):
    """torch's scaled_dot_product_attention. It has no dropout here: its masks would come from a random state."""

    kind = "sdpa"

    def attend(self, qkv: Tensor, sample_index: Tensor, plane: Plane) -> Tensor:
        """Context [s, b, a*d] from qkv [s, b, a, 3, d]."""
        query, key, value = qkv.permute(1, 2, 3, 0, 4).unbind(2)  # [b, a, s, d]
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.scale)
        return context.permute(2, 0, 1, 3).flatten(2)


CORE_ATTENTION: dict[str, type[CoreAttention]] = {
    kind.kind: kind for kind in (UnfusedCoreAttention, FusedCoreAttention, SdpaCoreAttention)
}


class Attention(nn.Module):
    """qkv product, core attention, projection (whose bias the dropout after it adds)."""

    def __init__(self, config: ModelConfig, seed: int, layer: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.core = CORE_ATTENTION[config.attention](config, seed, layer)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, sample_index: Tensor) -> Tensor:
        """[s, b, h] to [s, b, h]; sample_index int64 [b]."""
        return self.projection(self.core(self.qkv(x), sample_index))
