"""A forward pass that raises leaves no mode and no hook behind, and the next step is right."""

import pytest
import torch
from steps_compared import SETTINGS, Language, assert_same, plain_step, tokens
from torch import nn
from torch.utils import _python_dispatch as dispatch


class Raises(Language):
    is_bad = False

    def forward(self, tokens):
        x = self.layers[0](self.embedding(tokens))
        if self.is_bad:
            raise ValueError("bad batch")
        return self.head(self.norm(self.layers[1](x)))


def assert_nothing_is_left():
    assert torch.overrides._get_current_function_mode_stack() == []
    assert dispatch._get_current_dispatch_mode_stack() == []
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_model_raises(setting):
    def step(model, number):
        if number in (0, 2, 3):  # while it is recorded, and while it is followed
            model.is_bad = True
            with pytest.raises(ValueError, match="bad batch"):
                model(tokens(number))
            model.is_bad = False
            assert_nothing_is_left()
        return plain_step(model, number)

    assert_same(Raises, step, setting, steps=5)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_hook_of_the_users_raises(setting):
    def step(model, number):
        if number in (0, 2):
            handle = model.register_forward_pre_hook(fails)
            with pytest.raises(ValueError, match="a hook"):
                model(tokens(number))
            handle.remove()
            assert_nothing_is_left()
        return plain_step(model, number)

    def fails(module: nn.Module, given):
        raise ValueError("a hook")

    assert_same(Language, step, setting)
