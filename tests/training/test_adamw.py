"""AdamW of which an element's bits do not depend on its place, and torch's own, whose bits do."""

import pytest
import torch

from megaselect.training.adamw import ShardIndependentAdamW

OPTIONS = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95)}


def steps(make, weight, gradients):
    """The weight after a step for each gradient."""
    weight = weight.clone()
    optimizer = make([{"params": [weight]}])
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return weight


def ours(groups):
    return ShardIndependentAdamW(groups, **OPTIONS)


def torchs(groups):
    return torch.optim.AdamW(groups, fused=True, **OPTIONS)


@pytest.fixture
def trial():
    """A weight and gradients for 8 steps: enough elements that some round otherwise."""
    return torch.randn(6007, 7), [1e-3 * torch.randn(6007, 7) for _ in range(8)]


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_a_shard_has_the_bits_of_the_whole(trial, rows):
    weight, gradients = trial
    whole = steps(ours, weight, gradients)[: 3 * rows]
    cut = [tensor[: 3 * rows].split(rows) for tensor in (weight, *gradients)]
    shards = [steps(ours, part, others) for part, *others in zip(*cut, strict=True)]
    assert torch.equal(torch.cat(shards), whole)


def test_whole_registers_are_torch_s_own(trial):
    weight, gradients = trial
    weight, gradients = weight[:16], [gradient[:16] for gradient in gradients]
    assert torch.equal(steps(ours, weight, gradients), steps(torchs, weight, gradients))


def test_rests_of_tensors_that_began_at_different_steps_are_kept_apart():
    weights = [torch.randn(5), torch.randn(3)]
    alone = [steps(ours, weights[0], [torch.ones(5)] * 3), steps(ours, weights[1], [torch.ones(3)] * 2)]
    together = [weight.clone() for weight in weights]
    optimizer = ours([{"params": together}])
    for number in range(3):
        together[0].grad = torch.ones(5)
        together[1].grad = torch.ones(3) if number else None
        optimizer.step()
    for weight, expected in zip(together, alone, strict=True):
        assert torch.equal(weight, expected)


def test_found_inf_leaves_everything_as_it_was(trial):
    weight, gradients = trial
    optimizer = ours([{"params": [weight]}])
    before = weight.clone()
    weight.grad = gradients[0].clone()
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(weight, before)
    assert not any(tensor.any() for tensor in optimizer.state[weight].values())
