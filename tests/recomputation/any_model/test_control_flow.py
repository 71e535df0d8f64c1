"""Passes that differ: numbers that change, layers that are left out, loops that values end."""

import random

import pytest
import torch
from steps_compared import HIDDEN, SETTINGS, Language, assert_same, plain_step, squares
from torch import nn
from torch.nn import functional


class ChangingNumbers(nn.Module):
    """Python numbers of every kind, others in every pass."""

    def __init__(self):
        super().__init__()
        self.linear, self.passes = nn.Linear(HIDDEN, HIDDEN), 0

    def forward(self, x):
        self.passes += 1
        h = functional.dropout(functional.gelu(self.linear(x)), 0.1 * (self.passes % 4), True)
        h = (h * (1 + self.passes)).clamp(-self.passes, self.passes) ** (1 + self.passes % 2) + self.passes
        return h.sigmoid() * functional.leaky_relu(h, 0.1 * self.passes)


class ChangingTensors(nn.Module):
    """A buffer that is changed in place, and a tensor that is made anew."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(HIDDEN, HIDDEN), torch.ones(())
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        self.scale = self.scale + 1
        h = functional.gelu(self.linear(x)) * self.count
        return (h * self.scale).tanh() * self.count.item() + functional.gelu(h / self.count) * float(self.scale)


class LayerDrop(Language):
    def __init__(self):
        super().__init__(layers=4)

    def is_run(self):
        return bool(torch.rand(()) > 0.4)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            if self.is_run():
                x = layer(x)
        return self.head(x)


class LayerDropOfPython(LayerDrop):
    def is_run(self):
        return random.random() > 0.4


class EndedByValues(LayerDrop):
    def forward(self, tokens):
        x, runs = self.embedding(tokens), 0
        while x.float().norm() < 60 + runs and runs < 6:
            x = self.layers[runs % 4](x) * 1.2
            runs += 1
        return self.head(x)


def seeded_step(model, number):
    random.seed(number)
    return plain_step(model, number)


@pytest.mark.parametrize("setting", SETTINGS)
def test_changing_numbers(setting):
    assert assert_same(ChangingNumbers, squares(4, HIDDEN), setting, steps=8).departed > 0


@pytest.mark.parametrize("setting", SETTINGS)
def test_changing_tensors_are_followed(setting):
    assert assert_same(ChangingTensors, squares(4, HIDDEN), setting, steps=6).departed == 0


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", [LayerDrop, LayerDropOfPython, EndedByValues])
def test_other_layers_each_step(model, setting):
    assert assert_same(model, seeded_step, setting, steps=10).departed > 0
