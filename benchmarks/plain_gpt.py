"""The rival: the same GPT as an average good user of PyTorch writes it, with nothing of Megaselect's inside.

Shapes: b micro-batch, s sequence, h hidden, a heads, d = h/a head size, V padded vocabulary. Layout [b, s, h].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from megaselect.config import Config, ModelConfig

VOCABULARY_MULTIPLE = 128


class PlainAttention(nn.Module):
    """Causal self-attention by matrix products and torch's softmax and dropout."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_p = config.attention_dropout_p
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        future = torch.ones(config.seq_length, config.seq_length, dtype=torch.bool).triu(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] to [b, s, h]."""
        batch, sequence, hidden = x.shape
        parts = self.qkv(x).split(hidden, dim=2)
        query, key, value = (part.view(batch, sequence, self.heads, -1).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(self.future[:sequence, :sequence], float("-inf"))
        probs = functional.dropout(functional.softmax(scores, dim=-1), self.dropout_p, self.training)
        context = (probs @ value).transpose(1, 2).reshape(batch, sequence, hidden)
        return self.projection(context)


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

    def forward(self, x: Tensor) -> Tensor:
        """[b, s, h] to [b, s, h]."""
        x = x + self.dropout(self.attention(self.ln1(x)))
        return x + self.dropout(self.fc2(functional.gelu(self.fc1(self.ln2(x)), approximate="tanh")))


class PlainGPT(nn.Module):
    """Learned positions, tied head; the vocabulary is padded as Megaselect's is, so that the products are the same."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        super().__init__()
        padded = -(-config.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        self.token_embedding = nn.Embedding(padded, config.hidden_size)
        self.position_embedding = nn.Embedding(config.seq_length, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_p)
        self.layers = nn.ModuleList(PlainBlock(config) for _ in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0, config.init_std, generator=generator)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, an fp32 scalar, from int64 tokens and targets [b, s]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for layer in self.layers:
            x = layer(x)
        logits = functional.linear(self.final_layernorm(x), self.token_embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class PlainStep:
    """PlainGPT with fused AdamW and clipping.

    In 16 bit the weights and moments are 16 bit too: there are no fp32 master weights as Megaselect has them, so the
    rival does less work a step, not more.
    """

    def __init__(self, config: Config, device: torch.device, dtype: torch.dtype) -> None:
        training = config.training
        self.model = PlainGPT(config.model, training.seed).to(device=device, dtype=dtype)
        self.clip = training.clip_grad
        self.adam = torch.optim.AdamW(
            self.model.parameters(),
            lr=training.lr,
            betas=(training.beta1, training.beta2),
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def __call__(self, batch: tuple[Tensor, Tensor, Tensor]) -> float:
        """Forward, backward, clip, AdamW on (tokens, targets, sample_index), of which the last is not needed here."""
        loss = self.model(batch[0], batch[1])
        loss.backward()
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        return loss.item()
