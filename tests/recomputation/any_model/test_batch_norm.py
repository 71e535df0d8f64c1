"""Running statistics are updated once a pass, and recomputation neither updates nor reads them."""

import pytest
from steps_compared import SETTINGS, assert_same, squares, values
from torch import nn
from torch.nn import functional

from megaselect import recompute

SHAPE = (4, 3, 12, 12)


class Convolutions(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.norm1, self.norm2 = norm(8), norm(8, momentum=0.3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.dropout2d(functional.relu(self.norm1(self.first(x)), inplace=True), 0.3, self.training)
        x = functional.max_pool2d(functional.silu(self.norm2(self.second(x))), 2)
        return self.head(functional.adaptive_avg_pool2d(functional.dropout2d(x, 0.2, self.training), 1).flatten(1))


def instance_norm(channels, **options):
    return nn.InstanceNorm2d(channels, affine=True, track_running_stats=True, **options)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_and_statistics(setting):
    plan = assert_same(Convolutions, squares(*SHAPE), setting)
    assert (plan.recorded, plan.followed, plan.departed) == (1, 3, 0)


def test_the_norm_runs_again():
    """The activation after it, and its statistics, are made of the convolution's result, which is saved anyway."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU())
    plan = recompute(model)
    model(values(0, *SHAPE))
    given, convolved = 4 * 3 * 12 * 12 * 4, 4 * 8 * 10 * 10 * 4
    assert plan.bytes == given + convolved


@pytest.mark.parametrize("setting", SETTINGS)
def test_evaluation_beside_training(setting):
    """A graph of evaluation is alive while training updates the statistics that it read."""

    def step(model, number):
        model.eval()
        still = model(values(number, *SHAPE)).square().mean()
        model.train()
        loss = model(values(number + 9, *SHAPE)).square().mean()
        loss.backward()
        return [still, loss]

    assert_same(Convolutions, step, setting)


@pytest.mark.parametrize("setting", SETTINGS)
def test_instance_norm_with_running_statistics(setting):
    assert_same(lambda: Convolutions(instance_norm), squares(*SHAPE), setting)
