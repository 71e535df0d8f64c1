"""Norms and GELU made again with the parameters of their own forward pass, whatever the model holds by then."""

import pytest
import torch
from tiny_models import build_unchecked, make_batch, make_config
from torch.func import functional_call


def gradients(modules):
    recompute = {"mode": "selective", "modules": modules} if modules else None
    config = make_config(recompute, num_layers=2)
    model = build_unchecked(config)
    others = {name: (weight * 1.5).detach().requires_grad_() for name, weight in model.named_parameters()}
    functional_call(model, others, make_batch(config)).backward()
    return {name: weight.grad for name, weight in others.items()}


@pytest.mark.parametrize("module", ["layernorm", "gelu"])
def test_functional_call_has_the_gradients_of_its_parameters(module):
    expected, found = gradients(()), gradients((module,))
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
