"""Somebody else's random numbers inside a region that runs twice: the same gradients, and a word about it."""

import warnings

import pytest
import torch
from recompute_settings import SETTINGS, full, selective
from tiny_models import gradients, make_batch, make_config
from torch import nn

from megaselect import build_model

FULL = {"uniform 1": full(), "uniform 2": full(num_layers=2), "uniform 4": full(num_layers=4), "sqrt": full("sqrt")}


class Noise(nn.Module):
    """Draws by a function: nothing about the module says so."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


def append_dropout(model):
    for block in model.layers[1:3]:
        block.mlp.fc2 = nn.Sequential(block.mlp.fc2, nn.Dropout(0.3))


def append_noise(model):
    for block in model.layers[1:3]:
        block.attention.projection = nn.Sequential(block.attention.projection, Noise())


def drop_context(model):
    core = model.layers[1].attention.core
    attend = core._from_scores
    core._from_scores = lambda *arguments: nn.functional.dropout(attend(*arguments), 0.3)


def step(recompute, change):
    """(loss, gradients, RNG state at the end, warnings) of one step of a changed model from one torch seed."""
    config = make_config(recompute)
    model = build_model(config)
    change(model)
    torch.manual_seed(7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss = model(*make_batch(config))
        torch.rand(3)  # what others draw between forward and backward must survive the replay
        loss.backward()
    return loss.detach(), gradients(model), torch.get_rng_state(), [str(warning.message) for warning in caught]


def assert_same_step(recompute, change):
    loss, grads, state, messages = step(recompute, change)
    expected_loss, expected_grads, expected_state, expected_messages = step({}, change)
    assert expected_messages == []
    assert torch.equal(loss, expected_loss)
    assert [name for name, grad in expected_grads.items() if not torch.equal(grads[name], grad)] == []
    assert torch.equal(state, expected_state)
    return messages


@pytest.mark.parametrize("name", FULL)
def test_a_dropout_of_torch_s_is_replayed_and_named(name):
    messages = assert_same_step(FULL[name], append_dropout)
    named = [path for path in ("layers.1.mlp.fc2.1", "layers.2.mlp.fc2.1") if any(path in text for text in messages)]
    assert named == ["layers.1.mlp.fc2.1", "layers.2.mlp.fc2.1"]
    assert len(messages) == {"uniform 1": 2, "uniform 2": 2, "uniform 4": 1, "sqrt": 2}[name]
    assert all("draws random numbers" in text for text in messages)


@pytest.mark.parametrize("name", FULL)
def test_random_numbers_of_a_plain_function_are_replayed(name):
    messages = assert_same_step(FULL[name], append_noise)
    assert messages
    assert all("draws random numbers: its RNG state is kept" in text for text in messages)


def test_random_numbers_inside_a_core_attention_region_are_replayed():
    messages = assert_same_step(selective("core_attn"), drop_context)
    assert len(messages) == 1


@pytest.mark.parametrize(
    "recompute", [selective("softmax", "dropout"), selective("core_attn")], ids=["default", "core"]
)
def test_selective_does_not_touch_modules_outside_its_regions(recompute):
    assert assert_same_step(recompute, append_dropout) == []


def test_the_draws_matter():
    with_dropout, without = (step({}, change)[0] for change in (append_dropout, lambda model: None))
    assert not torch.equal(with_dropout, without)
    config = make_config()
    model = build_model(config)
    append_dropout(model)
    losses = [model(*make_batch(config)) for _ in range(2)]
    assert not torch.equal(*losses)


def test_our_own_dropout_draws_nothing(setting):
    config = make_config(setting)
    model = build_model(config)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(*make_batch(config)).backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropout_in_eval_mode_draws_nothing_and_is_no_warning():
    config = make_config(SETTINGS["uniform 1"])
    model = build_model(config)
    append_dropout(model)
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.eval()(*make_batch(config)).backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_second_step_is_right_too():
    def two_steps(recompute):
        config = make_config(recompute)
        model = build_model(config)
        append_dropout(model)
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for sample in (0, 2):
                model(*make_batch(config, sample)).backward()
        return gradients(model)

    actual, expected = two_steps(full()), two_steps({})
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
