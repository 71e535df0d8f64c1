"""What a ledger asks of tensors is no call of the model's: a pass that it watches follows as any other does."""

import torch
from torch import nn

from megaselect import recompute
from megaselect.ledger import record


class Doubled(torch.autograd.Function):
    """Autograd asks to save its tensors where no call of torch's interface is running."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = nn.functional.dropout(Doubled.apply(layer(x).sin()), 0.1)
        return x


def test_a_watched_pass_follows_where_a_function_of_the_models_own_saves():
    model = Model()
    plan = recompute(model, "full")
    totals = []
    for _ in range(2):
        with record(model) as rows:
            output = model(torch.ones(4, 8))
        output.sum().backward()
        totals.append(rows.total)
    assert (plan.recorded, plan.followed, plan.departed) == (1, 1, 0)
    assert totals == [plan.bytes] * 2
