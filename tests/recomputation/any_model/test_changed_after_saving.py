"""What is changed in place after autograd asked to save it: backward raises RuntimeError, as without recompute."""

import pytest
import torch
from steps_compared import HIDDEN, SETTINGS, values
from torch import nn
from torch.nn import functional

from megaselect import recompute


class Changes(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.first, self.second, self.change = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN), change

    def forward(self, x):
        return self.change(self, x)


def result(model, x):
    h = torch.sigmoid(model.first(x))
    y = h * 2
    h.add_(1)  # sigmoid's backward reads it
    return y


def argument(model, x):
    h = model.first(x)
    y = functional.gelu(h)
    h.add_(1)
    return y + h


def part(model, x):
    h = model.first(x)
    y = torch.tanh(functional.gelu(h) * 2)
    h[0].zero_()
    return y.exp() + h


def given(model, x):
    y = model.second(functional.gelu(model.first(x)))
    x.mul_(2)
    return y


def weight(model, x):
    y = model.second(functional.gelu(model.first(x)))
    with torch.no_grad():
        model.second.weight.mul_(2)
    return y


def remade(model, x):
    h = functional.gelu(model.first(x))
    y = model.second(h)
    h.mul_(2)
    return y


CHANGES = {change.__name__: change for change in (result, argument, part, given, weight, remade)}


@pytest.mark.parametrize("setting", [None, "none", *SETTINGS])
@pytest.mark.parametrize("change", CHANGES)
def test_backward_raises(change, setting):
    model = Changes(CHANGES[change])
    if setting is not None:
        recompute(model, setting)
    for number in range(3):  # recorded, then followed
        loss = model(values(number, 4, HIDDEN)).square().sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_output_changed_by_its_user(setting):
    """exp's backward reads its output, which is the model's."""
    model = nn.Sequential(nn.Linear(HIDDEN, HIDDEN), nn.GELU())
    recompute(model, setting)
    for number in range(3):
        output = torch.exp(model(values(number, 4, HIDDEN)))
        output.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()
