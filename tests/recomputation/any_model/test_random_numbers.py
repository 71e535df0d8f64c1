"""Random numbers that are drawn into an allocation, as dropout's on a CPU: drawn again, and never saved."""

import copy

import pytest
import torch
from torch import nn

from megaselect import recompute
from megaselect.ledger import record

SHAPE = (64, 256)
BYTES = 4 * 64 * 256


class Noise(nn.Module):
    """As models of others draw it: in a call of its own, into what another call has allocated."""

    def forward(self, x):
        x = x.sin()
        x *= torch.empty_like(x).uniform_(0.9, 1.1)
        return x * torch.empty(SHAPE).normal_()


@pytest.mark.parametrize("module", [nn.Dropout(0.1), Noise()], ids=["dropout", "noise"])
def test_random_numbers_are_drawn_again_in_recorded_and_in_followed_passes(module):
    plain = nn.Sequential(nn.Linear(256, 256), module, nn.Linear(256, 256), module, nn.GELU())
    model = copy.deepcopy(plain)
    plan = recompute(model, "selective")
    x = torch.randn(SHAPE)
    for step in range(3):
        gradients = []
        for one in (plain, model):
            torch.manual_seed(step)
            with record(one) as rows:
                output = one(x)
            gradients.append(torch.autograd.grad(output.sum(), list(one.parameters())))
        assert all(map(torch.equal, *gradients))
        assert rows.total == plan.bytes < 4 * BYTES  # x and what products give; no mask
    assert (plan.recorded, plan.followed, plan.departed, plan.unproved) == (1, 2, 0, {})
