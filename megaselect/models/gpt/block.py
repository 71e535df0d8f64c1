"""One pre-layernorm transformer layer. Shapes: s sequence, b micro-batch, h hidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from megaselect.compatibility import has_hooks
from megaselect.kernels.dropout_mask import ATTENTION_PROJECTION_SITE, MLP_SITE, SITES_PER_LAYER
from megaselect.kernels.gelu import gelu
from megaselect.models.gpt.attention import Attention
from megaselect.models.gpt.layers import HiddenDropout, LayerNorm
from megaselect.recomputation.policy import LayerPolicy

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class MLP(nn.Module):
    """fc2(gelu(fc1(x))), GELU by its tanh form as GPT-2 has it; the dropout after it adds fc2's bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.fc2 = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=False)
        self.policy = LayerPolicy()

    def forward(self, normed: Tensor, layernorm: nn.Module, source: Tensor) -> Tensor:
        """[s, b, h] from normed = layernorm(source), [s, b, h] both."""
        hidden = self.policy.linear("layernorm", self.fc1, normed, layernorm, source)
        return self.policy.linear("gelu", self.fc2, gelu(hidden), gelu, hidden)


class Block(nn.Module):
    """x + dropout(attention(ln1(x))), then the same with ln2 and the MLP. `layer` is its global number."""

    policy: LayerPolicy

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
        self.set_policy(LayerPolicy())

    def set_policy(self, policy: LayerPolicy) -> None:
        """Decide what the layer may save for backward."""
        for module in (self, self.attention, self.attention.core, self.mlp):
            module.policy = policy

    def fuses_layernorm(self) -> bool:
        """Whether ln2 runs in one op with the dropout before it, past both modules' calls.

        Not where somebody has replaced, sharded or hooked one of them: then the calls are theirs to see.
        """
        pair = ((self.attention_dropout, HiddenDropout), (self.ln2, LayerNorm))
        return self.policy.fuse_layernorm and all(type(module) is own and not has_hooks(module) for module, own in pair)

    def forward(self, x: Tensor, sample_index: Tensor) -> Tensor:
        """[s, b, h] to [s, b, h]; sample_index int64 [b]."""
        save_mask = self.policy.save_hidden_masks
        attended = self.attention(self.ln1(x), sample_index, self.ln1, x)
        if self.fuses_layernorm():
            x, normed = self.attention_dropout.then_layernorm(attended, x, self.ln2, sample_index, save_mask)
        else:
            x = self.attention_dropout(attended, x, sample_index, save_mask)
            normed = self.ln2(x)
        return self.mlp_dropout(self.mlp(normed, self.ln2, x), x, sample_index, save_mask)
