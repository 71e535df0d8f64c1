"""A call of torch's that changes its argument in place before it reads it."""

import pytest
from steps_compared import HIDDEN, SETTINGS, VOCABULARY, assert_same, plain_step
from torch import nn
from torch.nn import functional


class Bounded(nn.Module):
    """The embedding's rows are scaled, in place, where their norm is above a bound."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN, max_norm=1.0)
        self.linear, self.head = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, tokens):
        return self.head(functional.gelu(self.linear(self.embedding(tokens))))


@pytest.mark.parametrize("setting", SETTINGS)
def test_embedding_with_a_bound(setting):
    plan = assert_same(Bounded, plain_step, setting)
    assert (plan.recorded, plan.followed, plan.departed) == (1, 3, 0)
