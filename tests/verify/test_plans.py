"""verify on a model with a plan of megaselect.recompute: against the same model without it."""

import pytest
import torch
from torch import nn
from torch.utils import dlpack

import megaselect
from megaselect.recomputation.tape.replay import Recipe
from megaselect.verification.report import Outcome


def make_model():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 1)).train()


def verified(model):
    report = megaselect.verify(model, torch.randn(2, 8, 16), loss_fn=lambda output: output.square().mean())
    (subject,) = report.subjects
    return {check.name: check for check in subject.checks}, subject.figures


@pytest.mark.parametrize("setting", ["selective", "attention", "full"])
def test_a_plan_is_compared_with_the_model_without_it(setting):
    untouched, model = make_model(), make_model()
    _, expected = verified(untouched)
    plan = megaselect.recompute(model, setting)
    checks, figures = verified(model)
    assert {check.outcome for check in checks.values()} == {Outcome.PASSED}
    assert figures["saved_bytes_without_checkpointing"] == expected["saved_bytes"]
    assert figures["saved_bytes"] < expected["saved_bytes"]
    assert (figures["rerun_flops"] > 0) == (setting != "selective")
    assert checks["recipes"].detail == f"{plan.remade} tensors made again, each proved"
    assert plan.remade > 0


def test_a_recipe_that_gives_another_tensor_is_found(monkeypatch):
    model = make_model()
    megaselect.recompute(model, "selective")
    make = Recipe.make
    monkeypatch.setattr(Recipe, "make", lambda recipe: make(recipe) * 1.5)
    checks, _ = verified(model)
    assert checks["same bits"].outcome is Outcome.FAILED


def test_what_is_saved_since_it_could_not_be_proved_is_named():
    class Counting(torch.autograd.Function):
        """Writes by an alias of which torch does not know that it is one."""

        @staticmethod
        def forward(ctx, x):
            y = torch.relu(x)
            dlpack.from_dlpack(dlpack.to_dlpack(y.detach())).add_(1)
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x):
            hidden = self.linear(x)
            return (nn.functional.gelu(hidden) + Counting.apply(hidden)).sum(dim=-1, keepdim=True)

    model = Model()
    megaselect.recompute(model, "selective")
    checks, _ = verified(model)
    assert checks["same bits"].outcome is Outcome.PASSED
    assert checks["recipes"].outcome is Outcome.WARNING
    assert "saved since running it again gave other bits: relu (" in checks["recipes"].detail
