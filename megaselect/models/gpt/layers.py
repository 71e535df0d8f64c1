"""Layernorm, and dropout at the hidden sites, over our own ops.

Shapes: s sequence, b micro-batch, h hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.bias_dropout_residual_layer_norm import bias_dropout_residual_layer_norm
from megaselect.kernels.dropout_mask import Plane, drop_threshold
from megaselect.kernels.layer_norm import layer_norm


class HiddenDropout(nn.Module):
    """residual + dropout(x + bias) for activations [s, b, h]; bias and residual are optional.

    The bias of the matrix product before it lives here, so that a wrapped product (an adapter, a row-parallel one whose
    partial sums are added first) needs no bias of its own.
    """

    def __init__(self, hidden_size: int, dropout_p: float, seed: int, site: int, backend: str, bias: bool) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None
        self.plane = Plane(seed, site, drop_threshold(dropout_p))
        self.backend = backend

    def forward(self, x: Tensor, residual: Tensor | None, sample_index: Tensor, save_mask: bool) -> Tensor:
        """[s, b, h]; save_mask keeps the mask for backward instead of computing it again."""
        return bias_dropout_residual(
            x, self.bias, residual, sample_index, self._plane(), save_mask=save_mask, backend=self.backend
        )

    def then_layernorm(
        self, x: Tensor, residual: Tensor, layernorm: LayerNorm, sample_index: Tensor, save_mask: bool
    ) -> tuple[Tensor, Tensor]:
        """(out, layernorm(out)) in one op, with the bits of the two ops. For a dropout with a bias."""
        assert self.bias is not None
        return bias_dropout_residual_layer_norm(
            x,
            self.bias,
            residual,
            layernorm.weight,
            layernorm.bias,
            sample_index,
            self._plane(),
            epsilon=layernorm.epsilon,
            save_mask=save_mask,
            backend=self.backend,
        )

    def _plane(self) -> Plane:
        return self.plane if self.training else self.plane._replace(threshold=0)


class LayerNorm(nn.Module):
    """Over the last dimension, with fp32 statistics."""

    def __init__(self, hidden_size: int, epsilon: float, backend: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))
        self.epsilon = epsilon
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """[..., h] in x's dtype."""
        return layer_norm(x, self.weight, self.bias, self.epsilon, self.backend)
