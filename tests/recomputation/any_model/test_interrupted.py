"""A forward pass that a KeyboardInterrupt ends: the next one is as if it had not been."""

import pytest
import torch
from torch import nn

from megaselect import recompute


class Net(nn.Module):
    """`interrupt`: raised in the middle of the next pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 1)
        self.interrupt = None

    def forward(self, x):
        hidden = torch.nn.functional.gelu(self.first(x))
        if self.interrupt:
            raise self.interrupt
        return self.last(torch.tanh(hidden)).mean()


def step(model, x):
    model.zero_grad()
    model(x).backward()
    return [part.grad.clone() for part in model.parameters()]


@pytest.mark.parametrize("passes_before", [0, 2], ids=["while recorded", "while followed"])
def test_the_pass_after_an_interrupt_is_recomputed_with_the_same_bits(passes_before):
    torch.manual_seed(1)
    model, x = Net(), torch.randn(8, 16)
    wanted = step(model, x)
    plan = recompute(model, "selective")
    for _ in range(passes_before):
        step(model, x)
    known = plan.recorded + plan.followed
    model.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model(x)
    model.interrupt = None
    assert all(map(torch.equal, step(model, x), wanted))
    assert plan.recorded + plan.followed == known + 2  # the interrupted one, and the one after it
    assert not plan._running.passes


def test_a_pass_without_gradients_that_is_interrupted_leaves_nothing_behind():
    torch.manual_seed(1)
    model, x = Net(), torch.randn(8, 16)
    wanted = step(model, x)
    plan = recompute(model, "selective")
    model.interrupt = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        model(x)
    model.interrupt = None
    assert all(map(torch.equal, step(model, x), wanted))
    assert plan.recorded == 1
