"""Initial weights, a function of the seed alone."""

from __future__ import annotations

import math

import torch
from torch import nn

from megaselect.models.gpt.model import GPT


@torch.no_grad()
def initialise(model: GPT, init_std: float, seed: int) -> None:
    """GPT-2's and Megatron-LM's initialisation: N(0, std), residual projections by 1/sqrt(2L) less, biases 0.

    Drawn in fp32 on the CPU, so that every device and dtype starts from the same weights, rounded.
    """
    generator = torch.Generator().manual_seed(seed)
    residual_std = init_std / math.sqrt(2 * len(model.layers))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            std = residual_std if name.endswith(("attention.projection", "mlp.fc2")) else init_std
            module.weight.normal_(0, std, generator=generator)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
