"""Passes that differ: numbers that change, layers that are left out, loops that values end."""

import random

import pytest
import torch
from steps_compared import HIDDEN, SETTINGS, Language, assert_same, plain_step, squares
from torch import nn
from torch.nn import functional

from megaselect import recompute


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


class Inside(nn.Module):
    """Products in 16 bit or not, whatever holds outside: all tensors that other operators see are fp32 either way."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.narrow = nn.Linear(8, 64), nn.Linear(64, 8), True

    def forward(self, x):
        x = self.first(x)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.narrow):
            scores = torch.softmax((x @ x.t()).float(), -1)
        return (torch.tanh(scores) @ self.last(torch.tanh(x))).square().mean()


@pytest.mark.parametrize("setting", ["selective", "attention", "full"])
def test_autocast_inside_a_model_that_changes_between_passes(setting):
    torch.manual_seed(1)
    model, x = Inside(), torch.randn(32, 8)

    def gradients(narrow):
        model.narrow = narrow
        model.zero_grad()
        model(x).backward()
        return [part.grad.clone() for part in model.parameters()]

    wanted = {narrow: gradients(narrow) for narrow in (True, False)}
    assert not all(map(torch.equal, wanted[True], wanted[False]))
    recompute(model, setting)
    for narrow in (True, True, False, False, True):
        assert all(map(torch.equal, gradients(narrow), wanted[narrow]))


class DepartsInside(nn.Module):
    """Its second layer does something else where it is told, after it has begun."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.twice = nn.Linear(16, 16), False

        def forward(self, x):
            x = torch.tanh(self.linear(x))
            return torch.tanh(torch.sin(x)) if self.twice else torch.tanh(x)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(DepartsInside.Layer() for _ in range(3))
        for layer in self.layers:
            layer.register_forward_hook(lambda *_: None)  # with one, torch looks for more when forward is done

    def forward(self, x):
        for layer in self.layers:
            x = torch.dropout(layer(x), 0.1, True)
        return x.square().mean()


@pytest.mark.parametrize(
    "plan",
    [
        {"setting": {"layers.*": "selective"}},
        {"setting": {"layers.0": "full", "layers.1": "attention"}},
        {"setting": "full"},
        {"saved": 14_000},
    ],
)
def test_a_pass_that_departs_inside_a_layer_with_a_setting_of_its_own(plan):
    torch.manual_seed(1)
    model, x = DepartsInside(), torch.randn(32, 16)

    def gradients(twice):
        model.layers[1].twice = twice
        model.zero_grad()
        torch.manual_seed(3)
        model(x).backward()
        return [part.grad.clone() for part in model.parameters()]

    wanted = {twice: gradients(twice) for twice in (True, False)}
    made = recompute(model, **plan, **({"batch": x} if "saved" in plan else {}))
    for twice in (False, False, True, False, False, True):
        assert all(map(torch.equal, gradients(twice), wanted[twice]))
    assert made.departed == 2


@pytest.mark.parametrize("setting", ["selective", "full"])
def test_weights_that_are_frozen_between_passes(setting):
    """Autograd saves other tensors in calls that are the same."""
    torch.manual_seed(1)
    scale = nn.Parameter(torch.randn(16))

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.scale = nn.Linear(16, 16), nn.Linear(16, 16), scale

        def forward(self, x):
            x = torch.exp(torch.tanh(torch.tanh(self.first(x)) * self.scale) * self.scale)
            return torch.tanh(self.last(x)).square().mean()

    model, x = Scaled(), torch.randn(32, 16)

    def gradients(frozen):
        scale.requires_grad_(not frozen)
        model.zero_grad()
        model(x).backward()
        return [part.grad.clone() for part in model.parameters() if part.grad is not None]

    wanted = {frozen: gradients(frozen) for frozen in (True, False)}
    assert [len(wanted[frozen]) for frozen in (True, False)] == [4, 5]
    recompute(model, setting)
    for frozen in (True, True, False, False, True):
        assert all(map(torch.equal, gradients(frozen), wanted[frozen]))
