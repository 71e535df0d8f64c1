"""A plan keeps nothing of a forward pass alive that is not saved for backward: not its output."""

import weakref

import pytest
import torch
from torch import nn

import megaselect


class Output(dict):
    """As transformers has it: the loss, and logits that nobody asks for."""


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def forward(self, x):
        logits = self.layers(x)
        return Output(loss=logits.square().mean(), logits=logits)


@pytest.mark.parametrize("setting", ["selective", "full"])
@pytest.mark.parametrize("passes", [1, 2])  # recorded, followed
def test_the_output_is_freed_before_backward(setting, passes):
    model, x = Model(), torch.randn(4, 8)
    megaselect.recompute(model, setting)
    for _ in range(passes - 1):
        model(x)["loss"].backward()
    output = model(x)
    held, loss = weakref.ref(output), output["loss"]
    del output
    assert held() is None
    loss.backward()
