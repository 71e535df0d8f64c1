"""GPT-2's shape: learned positions, pre-layernorm blocks, tied head. Shapes: s sequence, b micro-batch, h hidden,
v vocabulary, V vocabulary padded to a multiple of 128, which matrix products want; padding never gets probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from megaselect.errors import ConfigError, SampleIndexError
from megaselect.kernels.cross_entropy import cross_entropy, token_losses
from megaselect.kernels.dropout_mask import EMBEDDING_SITE
from megaselect.kernels.linear_cross_entropy import linear_cross_entropy
from megaselect.models.gpt.block import Block
from megaselect.models.gpt.layers import HiddenDropout, LayerNorm
from megaselect.recomputation.policy import StackPolicy

if TYPE_CHECKING:
    from megaselect.config import ModelConfig


class GPT(nn.Module):
    """Weights are uninitialised until build_model fills them. `policy` runs the stack; blocks hold their own.

    loss_chunk_tokens: logits exist for so many tokens at a time, and are computed again in backward; None: for all.
    """

    def __init__(self, config: ModelConfig, seed: int, loss_chunk_tokens: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.loss_chunk_tokens = loss_chunk_tokens
        self.token_embedding = nn.Embedding(config.padded_vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.seq_length, config.hidden_size)
        self.embedding_dropout = HiddenDropout(
            config.hidden_size, config.hidden_dropout_p, seed, EMBEDDING_SITE, config.kernel_backend, bias=False
        )
        self.layers = nn.ModuleList(Block(config, seed, layer) for layer in range(config.num_layers))
        self.final_layernorm = LayerNorm(config.hidden_size, config.layernorm_epsilon, config.kernel_backend)
        self.policy = StackPolicy()

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        layers: list[Any] = list(self.layers)  # a ModuleList does not say what it holds
        return layers

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        sample_index: Tensor | None = None,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """Mean loss (fp32 scalar) where targets [b, s] are given, else logits [b, s, v]; tokens are int64 [b, s].

        reduction: "none" gives the loss of each token, fp32 [b, s], without a graph: for evaluation.
        sample_index: int64 [b], each sample's position in the run's data order; the dropout masks are a function of it.
        Raises SampleIndexError in training with dropout without it, ConfigError for more tokens than positions.
        """
        x = self._embed(tokens, self._checked_sample_index(tokens, sample_index))
        hidden = self.final_layernorm(x)
        if targets is None:
            logits = functional.linear(hidden, self.token_embedding.weight[: self.config.vocab_size])
            return logits.transpose(0, 1)
        flat = hidden.flatten(0, 1), targets.t().reshape(-1)
        return self._loss(*flat) if reduction == "mean" else self._token_losses(*flat).view_as(targets.t()).t()

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy from hidden [n, h] and targets [n]."""
        head, vocabulary = self.token_embedding.weight, self.config.vocab_size
        if self.loss_chunk_tokens is not None:
            return linear_cross_entropy(hidden, head, targets, vocabulary, self.loss_chunk_tokens)
        return cross_entropy(functional.linear(hidden, head), targets, vocabulary)

    @torch.no_grad()
    def _token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The cross-entropy of each token [n], the same numbers that _loss takes the mean of."""
        head, chunk = self.token_embedding.weight, self.loss_chunk_tokens or len(targets)
        chunks = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return torch.cat(
            [token_losses(functional.linear(part, head), wanted, self.config.vocab_size) for part, wanted in chunks]
        )

    def _embed(self, tokens: Tensor, sample_index: Tensor) -> Tensor:
        """Embeddings through the stack of layers: [s, b, h] from tokens [b, s]."""
        positions = self.position_embedding.weight[: tokens.shape[1], None]  # a slice: nothing is saved for backward
        x = self.token_embedding(tokens.t()) + positions
        x = self.embedding_dropout(x, None, sample_index)
        return self.policy.run(self.blocks, x, sample_index)

    def _checked_sample_index(self, tokens: Tensor, sample_index: Tensor | None) -> Tensor:
        if tokens.shape[1] > self.config.seq_length:
            raise ConfigError(f"{tokens.shape[1]} tokens exceed model.seq_length = {self.config.seq_length}")
        if sample_index is not None:
            if sample_index.shape != tokens.shape[:1]:
                raise SampleIndexError(
                    f"sample_index has shape {list(sample_index.shape)} for {tokens.shape[0]} samples: give one each"
                )
            return sample_index
        if self.training and (self.config.attention_dropout_p or self.config.hidden_dropout_p):
            raise SampleIndexError(
                "training with dropout needs sample_index [b], each sample's position in the run's data order: "
                "the masks are a function of it, and a guess would repeat them every step"
            )
        return tokens.new_zeros(tokens.shape[0])
