"""Faults that a comparison of gradients alone would miss, and right models that differences alone would fail."""

import numpy as np
import pytest
import torch
from checkpointed_models import OwnCheckpoint, with_parameters
from reports import details, outcomes
from torch import nn
from torch.utils.checkpoint import checkpoint

import megaselect

WIDTH = 16


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.Tanh(), nn.Linear(4 * WIDTH, WIDTH))


class Scaled(nn.Module):
    """x + scale * branch(x), the branch checkpointed; its mask is NumPy's, drawn anew where `anew`."""

    def __init__(self, scale, anew):
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.scale = nn.Parameter(torch.full((WIDTH,), scale))
        self.anew = anew

    def masked(self, x):
        draw = np.random if self.anew else np.random.default_rng(0)
        mask = torch.from_numpy((draw.random(tuple(x.shape)) > 0.3).astype("float32")).to(x.dtype)
        return torch.tanh(self.branch(x)) * mask

    def forward(self, x):
        x = self.first(x)
        return self.head(x + self.scale * checkpoint(self.masked, x, use_reentrant=False)).square().mean()


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_a_mask_that_is_drawn_anew_behind_any_scale(scale):
    """LayerScale begins with 1e-6: of the largest gradient the branch's are then what rounding is."""
    report = megaselect.verify(Scaled(scale, anew=True), torch.randn(8, WIDTH))
    assert outcomes(report)["same bits"] == "failed", str(report)
    assert megaselect.verify(Scaled(scale, anew=False), torch.randn(8, WIDTH)).passed


def test_behind_a_scale_that_rounds_to_nothing_it_cannot_be_told():
    report = megaselect.verify(Scaled(1e-9, anew=True), torch.randn(8, WIDTH))
    assert outcomes(report)["same bits"] == "not checked", str(report)
    assert details(report)["same bits"].endswith("too small a gradient to tell rounding from a fault")


def test_behind_a_scale_of_zero_no_gradient_can_tell():
    """As a layer with adaptive norms begins. The second run departs from the first: that is not passed."""
    model = Scaled(0.0, anew=True)
    inner = model.masked
    model.masked = lambda x: inner(x).square()  # so that the mask's product runs again
    report = megaselect.verify(model, torch.randn(8, WIDTH))
    assert outcomes(report)["second run"] == "not checked", str(report)
    assert "aten.mul gives another result in its second run" in details(report)["second run"]
    assert "branch.weight, branch.bias" in details(report)["second run"]
    assert not report.passed
    assert megaselect.verify(Scaled(0.0, anew=False), torch.randn(8, WIDTH)).passed


class Dropout(torch.autograd.Function):
    """A mask by seed in forward, and in backward by the same seed or by none."""

    @staticmethod
    def forward(ctx, x, seed_again):
        ctx.seed_again = seed_again
        return x * Dropout.mask(x, True)

    @staticmethod
    def backward(ctx, grad):
        return grad * Dropout.mask(grad, ctx.seed_again), None

    @staticmethod
    def mask(x, seeded):
        generator = torch.Generator().manual_seed(3 if seeded else 4)
        return (torch.rand(x.shape, generator=generator) > 0.3).to(x.dtype)


class WithDropout(nn.Module):
    def __init__(self, seed_again):
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), mlp()
        self.seed_again = seed_again

    def forward(self, x):
        x = Dropout.apply(self.first(x), self.seed_again)
        return checkpoint(self.second, x, use_reentrant=False).square().mean()


def test_a_mask_that_a_functions_own_backward_draws_anew():
    report = megaselect.verify(WithDropout(seed_again=False), torch.randn(4, WIDTH))
    assert outcomes(report)["differences"] == "failed", str(report)
    assert details(report)["differences"].startswith("first.weight: the derivative is")
    assert "aten.rand in backward draws other numbers than in forward" in details(report)["differences"]
    right = megaselect.verify(WithDropout(seed_again=True), torch.randn(4, WIDTH))
    assert right.passed
    assert "differences" not in outcomes(right)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_an_input_whose_gradient_is_lost():
    class FromDictionary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            y = checkpoint(lambda given: given["x"].exp(), {"x": x}, use_reentrant=True)
            return self.layer(y).square().mean()

    report = megaselect.verify(FromDictionary(), torch.rand(4, WIDTH, requires_grad=True))
    assert details(report)["gradients"] == "input 0: without a gradient, which is there without checkpointing"


def test_a_loss_that_is_no_number_says_nothing():
    class NoNumber(Scaled):
        def forward(self, x):
            return super().forward(x) * torch.nan

    report = megaselect.verify(NoNumber(1.0, anew=True), torch.randn(8, WIDTH))
    assert outcomes(report)["same bits"] == "not checked"
    assert details(report)["same bits"].startswith("the loss is nan")
    assert not report.passed


class StoppedGradient(nn.Module):
    """A target that is the output itself, detached: right, and no derivative of the loss."""

    def __init__(self, run):
        super().__init__()
        self.layer, self.head, self.run = mlp(), nn.Linear(WIDTH, WIDTH), run

    def forward(self, x):
        y = self.head(self.run(self.layer, x))
        return nn.functional.mse_loss(y, y.detach() * 0.9 + 1)


def test_a_model_that_stops_gradients_is_not_failed_by_differences():
    report = megaselect.verify(StoppedGradient(with_parameters(OwnCheckpoint)), torch.rand(4, WIDTH))
    assert outcomes(report)["differences"] == "not checked", str(report)
    assert "the model detaches tensors" in details(report)["differences"]
    by_torch = StoppedGradient(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    assert megaselect.verify(by_torch, torch.rand(4, WIDTH)).passed  # compared by bits


def test_gradients_are_on_whatever_the_caller_has():
    with torch.no_grad():
        assert megaselect.verify(Scaled(1.0, anew=False), torch.randn(8, WIDTH)).passed
