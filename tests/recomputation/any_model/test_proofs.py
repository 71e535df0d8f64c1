"""Proving recipes: each operator of a layer runs again once, not once for each of the recipes that it is in."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from megaselect import recompute

LAYERS, LENGTH = 3, 20


class Chain(nn.Module):
    def forward(self, x):
        for _ in range(LENGTH):
            x = (x * 1.5).sin()
        return x


class Sines(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.sin.default
        return func(*args, **(kwargs or {}))


class Chains(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Chain() for _ in range(LAYERS))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_proofs_share_what_they_make_within_a_layer():
    model = Chains()
    plan = recompute(model, "full")
    with Sines() as sines:
        model(torch.rand(64, requires_grad=True))
    assert plan.recorded == 1
    assert sines.count <= 2 * LAYERS * LENGTH  # the pass itself and its proofs
