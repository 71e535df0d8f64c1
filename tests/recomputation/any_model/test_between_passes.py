"""What changes between passes, or past what a recording sees, while the calls of torch stay alike."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from megaselect import recompute

X, ROW = torch.randn(16, 32), torch.randn(1, 32)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.one, self.other = nn.Parameter(torch.randn(16, 32)), nn.Parameter(torch.randn(16, 32))
        self.register_buffer("number", torch.tensor(0.1))
        self.register_buffer("book", torch.randn(32, 32).mul_(1))  # its version counts from 1
        self.step = 0

    def forward(self, x):
        return self.computed(x).sum()


class NumberOfATensor(Model):
    def computed(self, x):
        return torch.sin(functional.leaky_relu(self.linear(x), self.number * (self.step + 1)))


class WrittenByNumpy(Model):
    def computed(self, x):
        mask = torch.zeros(16, 32, dtype=torch.bool)
        mask.numpy()[:, 32 - 4 * self.step :] = True
        return self.linear(x).masked_fill(mask, 0.0).sin()


class ChangedByData(Model):
    def computed(self, x):
        loss = torch.sin(self.linear(x) @ self.book).square()
        self.book.data.mul_(0.9)
        return loss


class OtherOperand(Model):
    def forward(self, x):
        self.one.requires_grad_(self.step % 2 == 0)
        self.other.requires_grad_(self.step % 2 == 1)
        return super().forward(x)

    def computed(self, x):
        return (ROW + self.one) * (ROW - self.other)


class GradientInside(Model):
    def computed(self, x):
        x = x.detach().requires_grad_()
        energy = functional.leaky_relu(self.linear(x), 0.1 * (self.step + 1)).sum()
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        return torch.sin(force) + energy


class OverwrittenInBackward(Model):
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(ctx, gradient):
            return ctx.saved_tensors[0].mul_(2 * gradient)

    def computed(self, x):
        x = self.linear(x).tanh() * 2
        return torch.sin(x * 3) + self.Square.apply(x)


class SignOfZero(Model):
    def computed(self, x):
        return torch.atan2(ROW.abs() * (0.0 if self.step % 2 else -0.0), torch.full((16, 32), -1.0)) * self.one


class DataReplaced(Model):
    def computed(self, x):
        doubled = ROW.expand(16, 32) * 2
        if self.step % 2:
            doubled.data = X
        return torch.sin(doubled * 3) * self.one


class DefaultDtype(Model):
    def forward(self, x):
        torch.set_default_dtype(torch.float64 if self.step % 2 else torch.float32)
        try:
            return super().forward(x)
        finally:
            torch.set_default_dtype(torch.float32)

    def computed(self, x):
        third = torch.full((), 0.1)
        third = (third * third * third).exp()
        return torch.sin(ROW.expand(16, 32) * third) * self.one


MODELS = [NumberOfATensor, WrittenByNumpy, ChangedByData, OtherOperand, GradientInside, OverwrittenInBackward]


@pytest.mark.parametrize("setting", ["selective", "attention", "full"])
@pytest.mark.parametrize("kind", [*MODELS, SignOfZero, DataReplaced, DefaultDtype])
def test_same_gradients(kind, setting):
    torch.manual_seed(1)
    untouched = kind()
    model = copy.deepcopy(untouched)
    recompute(model, setting)
    for step in range(5):
        for each in (untouched, model):
            each.step = step
            each.zero_grad()
            each(X).backward()
        for (name, expected), found in zip(untouched.named_parameters(), model.parameters(), strict=True):
            both = expected.grad, found.grad
            assert both == (None, None) or torch.equal(*both), (step, name)


def test_hooks_around_the_model_are_asked_for_all_that_is_saved():
    untouched = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.Tanh())
    model = copy.deepcopy(untouched)
    recompute(model, "selective")
    for each in (untouched, model):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float()):
            loss = each(X).sum()
        loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(untouched.parameters(), model.parameters(), strict=True))


def test_proofs_are_let_go_of():
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    plan = recompute(model, "full")
    made = []
    forget = plan._finish
    plan._finish = lambda current, kind, recording: (forget(current, kind, recording), made.append(recording))
    model(torch.randn(64, 64)).sum()
    assert made[0].saving._proofs.made == {}


def test_recurrent_layers_are_not_predicted():
    model = nn.LSTM(8, 8, batch_first=True)
    with pytest.raises(Exception, match="runs otherwise without values, in its LSTM"):
        recompute(model, "selective").predict(torch.randn(2, 3, 8))
