"""A later pass may use another parameter in the place of the one that was recorded, of the same shape and version."""

import pytest
import torch
from steps_compared import HIDDEN, SETTINGS, assert_same, squares
from torch import nn
from torch.nn import functional


class Switches(nn.Module):
    """Two scales that are the same one in the first pass."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.scales = nn.ParameterList(nn.Parameter(torch.rand(HIDDEN) + 0.5) for _ in range(2))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        one, other = self.scales[0], self.scales[0 if self.passes == 1 else 1]
        h = self.linear(x)
        return (torch.tanh(h * one).sin() * torch.tanh(h * other).sin()).exp() + sum(self.scales)


class Norms(nn.Module):
    """A shared norm in the first pass, another one in later ones."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        self.norms = nn.ModuleList(nn.LayerNorm(HIDDEN) for _ in range(3))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        h = self.linear(x)
        other = self.norms[0 if self.passes == 1 else 1 + self.passes % 2]
        result = functional.gelu(self.norms[0](h)).sin() * functional.gelu(other(h)).sin()
        return self.linear(result).exp() + sum(norm.weight + norm.bias for norm in self.norms)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", [Switches, Norms])
def test_the_one_that_came_is_used(model, setting):
    plan = assert_same(model, squares(4, HIDDEN), setting)
    assert plan.departed >= 1
