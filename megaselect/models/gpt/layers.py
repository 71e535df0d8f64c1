"""Layernorm, GELU, and dropout at the hidden sites, over our own ops.

Shapes: s sequence, b micro-batch, h hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megaselect.compatibility import has_hooks
from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.bias_dropout_residual_layer_norm import bias_dropout_residual_layer_norm
from megaselect.kernels.dropout_mask import Plane, drop_threshold
from megaselect.kernels.gelu import gelu
from megaselect.kernels.layer_norm import layer_norm
from megaselect.recomputation.remade_outputs import made_by


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
        self.save_mask = True  # for backward, instead of computing it again
        self.fuse_layernorm = True

    def forward(self, x: Tensor, residual: Tensor | None, sample_index: Tensor) -> Tensor:
        """[s, b, h]."""
        return bias_dropout_residual(
            x, self.bias, residual, sample_index, self._plane(), save_mask=self.save_mask, backend=self.backend
        )

    def then_layernorm(
        self, x: Tensor, residual: Tensor, layernorm: LayerNorm, sample_index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(out, layernorm(out)) in one op, with the bits of the two ops. For a dropout with a bias."""
        assert self.bias is not None
        out, normed = bias_dropout_residual_layer_norm(
            x,
            self.bias,
            residual,
            layernorm.weight,
            layernorm.bias,
            sample_index,
            self._plane(),
            epsilon=layernorm.epsilon,
            save_mask=self.save_mask,
            backend=self.backend,
        )
        made_by(layernorm, out, normed)
        return out, normed

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


class GELU(nn.Module):
    """By its tanh form, as GPT-2 has it."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, in x's dtype."""
        return gelu(x)


def run_fused(dropout: nn.Module, layernorm: nn.Module) -> bool:
    """Whether the two run in one op, past both modules' calls.

    Not where somebody has replaced, sharded or hooked one of them: then the calls are theirs to see.
    """
    is_ours = type(dropout) is HiddenDropout and type(layernorm) is LayerNorm and dropout.fuse_layernorm
    return is_ours and not has_hooks(dropout) and not has_hooks(layernorm)


def add_then_normalise(
    dropout: nn.Module, layernorm: nn.Module, x: Tensor, residual: Tensor, sample_index: Tensor
) -> tuple[Tensor, Tensor]:
    """out = residual + dropout(x), and layernorm(out), [s, b, h] both."""
    if isinstance(dropout, HiddenDropout) and isinstance(layernorm, LayerNorm) and run_fused(dropout, layernorm):
        return dropout.then_layernorm(x, residual, layernorm, sample_index)
    out = dropout(x, residual, sample_index)
    return out, layernorm(out)
