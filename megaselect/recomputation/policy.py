"""What the model asks about storage. It never asks which mode is on; megaselect.recompute answers.

Attention's core asks its LayerPolicy what each op may save for backward, and hands it what may be computed again. The
model hands its StackPolicy the whole stack of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Region = Callable[..., Tensor]


@dataclass(frozen=True)
class LayerPolicy:
    """Keeps everything, as plain autograd would: the base of all policies."""

    save_probs: bool = True
    save_attention_mask: bool = True
    save_hidden_masks: bool = True
    fuse_layernorm: bool = True  # the second layernorm in one op with the dropout and residual before it: the same bits

    def region(self, module: str, place: str, run: Region, *tensors: Tensor) -> Tensor:
        """run(*tensors). module: which recompute module it is; place: where it is in the layer, for the ledger."""
        return run(*tensors)


class StackPolicy:
    """Runs the layers one after the other and keeps what each of them keeps."""

    def run(self, layers: Sequence[nn.Module], x: Tensor, sample_index: Tensor) -> Tensor:
        """The last layer's output [s, b, h]."""
        for layer in layers:
            x = layer(x, sample_index)
        return x
