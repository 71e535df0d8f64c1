"""One pre-layernorm transformer layer. Shapes: s sequence, b micro-batch, h hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from megaselect.kernels.dropout_mask import ATTENTION_PROJECTION_SITE, MLP_SITE, SITES_PER_LAYER
from megaselect.models.gpt.attention import Attention
from megaselect.models.gpt.layers import GELU, HiddenDropout, LayerNorm, add_then_normalise

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class MLP(nn.Module):
    """fc2(gelu(fc1(x))); the dropout after it adds fc2's bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.gelu = GELU()
        self.fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[s, b, h] to [s, b, h]."""
        return self.fc2(self.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + dropout(attention(ln1(x))), then the same with ln2 and the MLP. `layer` is its global number."""

    def __init__(self, config: ModelConfig, seed: int, layer: int) -> None:
        super().__init__()
        site = layer * SITES_PER_LAYER
        dropout = (config.hidden_size, config.hidden_dropout_p, seed)
        backend = config.kernel_backend
        self.layer = layer
        self.ln1 = LayerNorm(config.hidden_size, config.layernorm_epsilon, backend)
        self.attention = Attention(config, seed, layer)
        self.attention_dropout = HiddenDropout(*dropout, site + ATTENTION_PROJECTION_SITE, backend, bias=True)
        self.ln2 = LayerNorm(config.hidden_size, config.layernorm_epsilon, backend)
        self.mlp = MLP(config)
        self.mlp_dropout = HiddenDropout(*dropout, site + MLP_SITE, backend, bias=True)

    def forward(self, x: Tensor, sample_index: Tensor) -> Tensor:
        """[s, b, h] to [s, b, h]; sample_index int64 [b]."""
        attended = self.attention(self.ln1(x), sample_index)
        x, normed = add_then_normalise(self.attention_dropout, self.ln2, attended, x, sample_index)
        return self.mlp_dropout(self.mlp(normed), x, sample_index)
