"""Loops that people write: the same losses, gradients and random numbers as without recompute."""

import pytest
import torch
from steps_compared import SETTINGS, Language, assert_same, cross_entropy, plain_step, tokens
from torch.nn import functional

from megaselect import recompute

ONE_KIND = (1, 3, 0)  # forward passes recorded, followed, departed, of four steps


def counts(plan):
    return plan.recorded, plan.followed, plan.departed


def backward(*losses):
    sum(losses).backward()
    return losses


def accumulated(model, number):
    losses = [cross_entropy(model, tokens(3 * number + part)) for part in range(3)]
    return backward(*losses)


def last_first(model, number):
    losses = [cross_entropy(model, tokens(3 * number + part)) for part in range(3)]
    for loss in reversed(losses):
        loss.backward()
    return losses


def backward_twice(model, number):
    loss = cross_entropy(model, tokens(number))
    loss.backward(retain_graph=True)
    loss.backward()
    return [loss]


def gradients_of_gradients(model, number):
    loss = cross_entropy(model, tokens(number))
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return backward(loss, sum(gradient.square().sum() for gradient in gradients))


def called_twice(model, number):
    one, other = model(tokens(number)), model(tokens(number + 7))
    return backward((one.mean(1) - other.mean(1)).square().sum())


def output_changed(model, number):
    output = model(tokens(number))
    output.mul_(2)[:, 0] = 0
    return backward(functional.cross_entropy(output.relu_().flatten(0, 1), tokens(number).flatten()))


def evaluated_between(model, number):
    model.eval()
    with torch.no_grad():
        before = cross_entropy(model, tokens(50))
    model.train()
    loss = cross_entropy(model, tokens(number))
    model.eval()
    with torch.inference_mode():
        after = cross_entropy(model, tokens(51)).clone()
    model.train()
    return [before, after, *backward(loss)]


LOOPS = {
    loop.__name__: loop
    for loop in (accumulated, last_first, backward_twice, gradients_of_gradients, called_twice, output_changed)
}
PASSES = {"accumulated": 12, "last_first": 12, "called_twice": 8}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("loop", LOOPS)
def test_one_kind_of_pass(loop, setting):
    plan = assert_same(Language, LOOPS[loop], setting)
    assert counts(plan) == (1, PASSES.get(loop, 4) - 1, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_evaluation_records_nothing(setting):
    plan = assert_same(Language, evaluated_between, setting)
    assert counts(plan) == ONE_KIND


@pytest.mark.parametrize("setting", SETTINGS)
def test_autocast_every_other_step(setting):
    def step(model, number):
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(number % 2)):
            loss = cross_entropy(model, tokens(number))
        return backward(loss)

    assert counts(assert_same(Language, step, setting)) == (2, 2, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_backward_inside_autocast(setting):
    def step(model, number):
        with torch.autocast("cpu", torch.bfloat16):
            return backward(cross_entropy(model, tokens(number)))

    assert counts(assert_same(Language, step, setting)) == ONE_KIND


@pytest.mark.parametrize("setting", SETTINGS)
def test_half_precision(setting):
    assert counts(assert_same(lambda: Language().bfloat16(), plain_step, setting)) == ONE_KIND


@pytest.mark.parametrize("setting", SETTINGS)
def test_batches_of_changing_shapes(setting):
    def step(model, number):
        return backward(cross_entropy(model, tokens(number, 1 + number % 3, 8 + number % 2)))

    assert counts(assert_same(Language, step, setting, steps=9)) == (6, 3, 0)


@pytest.mark.parametrize("setting", SETTINGS)
def test_bytes_are_those_of_the_last_pass(setting):
    model = Language()
    plan = recompute(model, setting)
    saved = {}
    for length in (8, 4, 8, 4):
        cross_entropy(model, tokens(1)[:, :length]).backward()
        if length in saved:
            assert plan.bytes == saved[length]
        saved[length] = plan.bytes
    assert saved[4] < saved[8]
    assert counts(plan) == (2, 2, 0)
