"""A model with a plan is copied with it: the copy has a plan of its own."""

import copy
import io
import pickle

import pytest
import torch
from steps_compared import SETTINGS, Language, cross_entropy, tokens

from megaselect import recompute


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_and_loaded,
}


def step(model):
    torch.manual_seed(5)
    model.zero_grad()
    loss = cross_entropy(model, tokens(1))
    loss.backward()
    return [loss.detach(), *(part.grad for part in model.parameters())]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("how", COPIES)
def test_the_copy_trains_by_itself(how, setting):
    model = Language()
    plan = recompute(model, setting)
    step(model)
    copied = COPIES[how](model)
    assert all(torch.equal(one, other) for one, other in zip(step(model), step(copied), strict=True))
    assert (plan.recorded, plan.followed) == (1, 1)
    copied.load_state_dict(model.state_dict())


@pytest.mark.parametrize("setting", SETTINGS)
def test_undo_between_forward_and_backward(setting):
    model = Language()
    expected = step(model)
    plan = recompute(model, setting)
    step(model)
    torch.manual_seed(5)
    model.zero_grad()
    loss = cross_entropy(model, tokens(1))
    plan.undo()
    loss.backward()
    found = [loss.detach(), *(part.grad for part in model.parameters())]
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    recompute(model, setting)  # a plan may be made again
