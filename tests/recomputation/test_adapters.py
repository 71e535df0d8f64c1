"""Modules that others wrap, replace or hook, adapters with torch's dropout among them: the same bits in every mode."""

import functools

import pytest
import torch
from foreign_modules import CHANGES, Adapter, ReadsInput, around
from recompute_settings import SETTINGS, full
from tiny_models import build_unchecked, gradients, make_batch, make_config
from torch import nn
from turns import in_turns

from megaselect.errors import RecomputeError
from megaselect.ledger import record
from megaselect.models.gpt.layers import run_fused

pytestmark = pytest.mark.filterwarnings("ignore:.*draws random numbers")

MODES = {
    "softmax dropout": SETTINGS["softmax dropout"],
    "core_attn": SETTINGS["core_attn"],
    "layernorm": SETTINGS["layernorm"],
    "gelu": SETTINGS["gelu"],
    "all": SETTINGS["all"],
    "full 1": full(),
    "full 2": full(num_layers=2),
}


def freeze_nothing(model):
    pass


def freeze_base(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".up." in name or ".down." in name)


def freeze_all_but_the_last_layer(model):
    model.requires_grad_(False)
    model.layers[-1].requires_grad_(True)


def train(recompute, attention, freeze, steps=2):
    """Losses, gradients, random states and trained parameters of some steps with adapters."""
    config = make_config(recompute, attention=attention, num_layers=2)
    model = build_unchecked(config)
    around(Adapter)(model)
    freeze(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    torch.manual_seed(7)
    trace = {}
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(*make_batch(config, 2 * step))
        trace[f"{step} state after forward"] = torch.get_rng_state()
        loss.backward()
        trace |= {f"{step} gradient of {name}": parameter.grad.clone() for name, parameter in trained.items()}
        optimizer.step()
        trace |= {f"{step} loss": loss.detach(), f"{step} state": torch.get_rng_state()}
    assert [name for name, grad in gradients(model).items() if grad is not None] == list(trained)
    return trace | {f"trained {name}": parameter.detach() for name, parameter in trained.items()}


train_without_recompute = functools.cache(functools.partial(train, {}))


def different(actual, expected):
    assert actual.keys() == expected.keys()
    return [name for name in expected if not torch.equal(actual[name], expected[name])]


FREEZES = {
    "nothing frozen": freeze_nothing,
    "base frozen": freeze_base,
    "all but the last layer frozen": freeze_all_but_the_last_layer,
}


@in_turns(2, {"mode": MODES.keys(), "attention": ["unfused", "fused"], "freeze": FREEZES})
def test_adapters_train_to_the_same_bits(mode, attention, freeze):
    trace = train(MODES[mode], attention, freeze)
    assert different(trace, train_without_recompute(attention, freeze)) == []


@pytest.mark.parametrize("freeze", FREEZES.values(), ids=FREEZES)
def test_the_adapters_draw_and_learn(freeze):
    trace = train_without_recompute("unfused", freeze)
    assert not torch.equal(trace["0 state"], trace["1 state"])
    assert torch.equal(trace["0 state after forward"], trace["0 state"])
    assert any(".up." in name for name in trace)
    assert all(grad.abs().max() > 0 for name, grad in trace.items() if "gradient" in name)
    assert not torch.equal(trace["0 loss"], trace["1 loss"])


def step(recompute, attention, change):
    """{"loss": ..., "random state": ..., a parameter: its gradient} of a changed model."""
    config = make_config(recompute, attention=attention, num_layers=2)
    model = build_unchecked(config)
    change(model)
    torch.manual_seed(7)
    loss = model(*make_batch(config))
    loss.backward()
    grads = {name: grad for name, grad in gradients(model).items() if grad is not None}
    return {"loss": loss.detach(), "random state": torch.get_rng_state(), **grads}


@functools.cache
def step_without_recompute(attention, change):
    return step({}, attention, CHANGES[change])


@in_turns(2, {"mode": MODES.keys(), "attention": ["unfused", "fused"], "change": CHANGES.keys()})
def test_changed_modules_give_the_same_bits(mode, attention, change):
    actual = step(MODES[mode], attention, CHANGES[change])
    assert different(actual, step_without_recompute(attention, change)) == []


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"slice of wider"}))  # that one is the same product
def test_every_change_has_an_effect(change):
    unchanged = step({}, "unfused", lambda model: None)
    assert not torch.equal(step_without_recompute("unfused", change)["loss"], unchanged["loss"])


@pytest.mark.parametrize("norm", ["ln1", "ln2"])
@pytest.mark.parametrize("mode", MODES)
def test_a_norm_that_draws_random_numbers_is_right_or_refused(mode, norm):
    """It runs before the region that would make its output again, so its random state there is not known."""

    def append_dropout(model):
        for block in model.layers:
            setattr(block, norm, nn.Sequential(getattr(block, norm), nn.Dropout(0.2)))

    if mode in ("layernorm", "all"):
        with pytest.raises(RecomputeError, match=r"layers\.1: Sequential draws random numbers.* leave layernorm"):
            step(MODES[mode], "unfused", append_dropout)
    else:
        assert different(step(MODES[mode], "unfused", append_dropout), step({}, "unfused", append_dropout)) == []


@pytest.mark.parametrize("mode", ["none", "all"])
def test_the_ledger_s_own_hooks_change_nothing(mode):
    config = make_config({"none": {}, **MODES}[mode], num_layers=2)
    model, with_hooks = build_unchecked(config), build_unchecked(config)
    with_hooks.layers[0].ln2.register_forward_hook(lambda module, inputs, out: None)
    with record(model) as ledger:
        assert all(run_fused(block.attention_dropout, block.ln2) for block in model.layers)
        model(*make_batch(config))
    with record(with_hooks) as same:
        assert [run_fused(block.attention_dropout, block.ln2) for block in with_hooks.layers] == [False, True]
        with_hooks(*make_batch(config))
    assert ledger.by_name() == same.by_name()


@pytest.mark.parametrize("on_context", [False, True])
@pytest.mark.parametrize("mode", ["none", *MODES])
def test_backward_reads_the_input_that_forward_had(mode, on_context):
    notes = {"forward": [], "backward": []}
    wrapper = functools.partial(ReadsInput, notes=notes, on_context=on_context)
    actual = step({"none": {}, **MODES}[mode], "unfused", around(wrapper))
    assert len(notes["backward"]) == 8  # four products in each of two layers, each once
    first_runs = notes["forward"][:8]
    assert all(map(torch.equal, notes["backward"], reversed(first_runs)))
    plain = functools.partial(ReadsInput, notes={"forward": [], "backward": []})
    assert different(actual, step({}, "unfused", around(plain))) == []


def test_a_wrong_input_in_backward_would_show():
    """What is read there reaches the weight gradient alone, and bitwise equality sees it."""
    config = make_config(num_layers=2)
    grads = []
    for factor in (1.0, 1.0 + 2**-20):
        model = build_unchecked(config)
        notes = {"forward": [], "backward": []}
        around(functools.partial(ReadsInput, notes=notes, on_context=True))(model)
        loss = model(*make_batch(config))
        for node in _nodes(loss.grad_fn):
            if hasattr(node, "on_context"):
                node.x = node.x * factor
        loss.backward()
        grads.append(gradients(model))
    changed = {name for name in grads[0] if not torch.equal(grads[0][name], grads[1][name])}
    assert changed == {name for name in grads[0] if name.endswith("base.weight")}


def _nodes(root):
    """Every node of the autograd graph behind `root`."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        yield node
        new = {following for following, _ in node.next_functions if following} - seen
        seen |= new
        waiting += new
