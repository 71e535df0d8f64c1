"""One token's logits after the other from a trained model, which looks at each token once.

Shapes: s sequence, n new tokens, b batch (1), h hidden, a heads, d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from megaselect.models.gpt.attention import CoreAttention
from megaselect.models.gpt.model import GPT

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class _CachedCore(CoreAttention):
    """Core attention of new tokens over themselves and all before them, whose keys and values are kept."""

    def __init__(self, config: ModelConfig, like: Tensor) -> None:
        super().__init__(config, seed=0, layer=0)  # of masks, and here nothing is dropped
        shape = (2, 1, config.num_attention_heads, config.seq_length, self.head_size)
        self.kept = like.new_empty(shape)  # keys, values: [2, b, a, s, d]
        self.length = 0

    def forward(self, qkv: Tensor, sample_index: Tensor) -> Tensor:
        """Context [n, b, a*d] from qkv [n, b, 3*a*d]; either the first tokens, or one more."""
        count, batch, _ = qkv.shape
        query, *new = qkv.view(count, batch, -1, 3, self.head_size).permute(3, 1, 2, 0, 4)  # [b, a, n, d]
        end = self.length + count
        self.kept[..., self.length : end, :] = torch.stack(new)
        self.length = end
        keys, values = self.kept[..., :end, :]
        context = functional.scaled_dot_product_attention(query, keys, values, is_causal=count > 1, scale=self.scale)
        return context.permute(2, 0, 1, 3).flatten(2)


class Decoder:
    """Takes a model over: its core attentions are replaced by ones that keep keys and values, and it trains no more.

    What it computes is the model's forward pass in eval mode, but for the order of sums.
    """

    def __init__(self, model: GPT, vocab_size: int) -> None:
        """vocab_size: of the tokenizer, whose ids are the ones to choose from."""
        self._model, self._vocab_size = model.eval(), vocab_size
        self._length = model.config.seq_length
        self._ids: list[int] = []
        weight = model.token_embedding.weight
        self._sample_index = torch.zeros(1, dtype=torch.int64, device=weight.device)
        self._cores: list[_CachedCore] = []
        for block in model.blocks:
            core = _CachedCore(model.config, weight)
            block.attention.core = core
            self._cores.append(core)

    @torch.no_grad()
    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """fp32 [v] on the CPU for what follows the last seq_length of `ids`.

        One more token than at the last call costs a pass over that one. Once there are more than seq_length, every
        token's position changes with each, and each costs a pass over the whole window.
        """
        window = list(ids[-self._length :])
        known = len(self._ids)
        if len(window) != known + 1 or window[:known] != self._ids:
            known = 0
        logits = self._forward(window, known)
        self._ids = window
        return logits

    def _forward(self, window: list[int], known: int) -> Tensor:
        model, weight = self._model, self._model.token_embedding.weight
        for core in self._cores:
            core.length = known
        tokens = torch.tensor(window[known:], device=weight.device)
        x = model.token_embedding(tokens)[:, None] + model.position_embedding.weight[known : len(window), None]
        for block in model.blocks:
            x = block(x, self._sample_index)
        hidden = model.final_layernorm(x[-1:])  # [1, b, h]
        return functional.linear(hidden, weight[: self._vocab_size])[0, 0].float().cpu()
