"""Layers under torch.compile: one graph a setting, the bytes that are predicted, the same bits in every mode."""

from dataclasses import replace

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, gradients, make_batch, make_config
from torch._dynamo.utils import counters

from megaselect import Config, build_model
from megaselect.ledger import record
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape, bytes_per_layer, saved_bytes
from megaselect.recomputation.plan import make_plan

pytestmark = pytest.mark.compiles

ELEMENT_BYTES = {"fp32": 4, "bf16": 2}
LAYERS = 4
# Each layer in its own way: a graph for each, where a setting of its own for each would compile two.
OF_EACH_LAYER = ("core_attn dropout", "gelu", "all", "softmax dropout")
# Attention, dtype, and plans that differ in what the graph recomputes, in an order in which a graph that served the
# next one would show.
UNFUSED = ("unfused", "fp32", ["none", OF_EACH_LAYER, "uniform 2"])
CASES = [
    pytest.param(UNFUSED, id="unfused fp32"),
    pytest.param(("fused", "bf16", ["none", "core_attn", "all", "block 3"]), id="fused bf16"),
    pytest.param(("sdpa", "fp32", ["none", "all"]), id="sdpa fp32"),
    pytest.param(
        ("unfused", "fp32", ["none", OF_EACH_LAYER, "layernorm gelu odd", "uniform 2"]),
        id="unfused fp32, odd layers too",
        marks=pytest.mark.soak,
    ),
]


def config_of(attention, dtype="fp32", recompute=None):
    dropout = {"attention_dropout_p": 0.0} if attention == "sdpa" else {}
    return make_config(recompute, dtype=dtype, attention=attention, num_layers=LAYERS, **dropout)


def plan_of(name):
    """Of a setting, or of a tuple with a setting for each layer."""
    if isinstance(name, str):
        return make_plan(make_config(SETTINGS[name]).recompute, LAYERS)
    plans = list(map(plan_of, name))
    modules = tuple(plan.modules[layer] for layer, plan in enumerate(plans))
    return replace(plans[0], modules=modules, recompute_embedding_mask=any(p.recompute_embedding_mask for p in plans))


def compiled(config, plan):
    """The model with its layers compiled, for plans too that save nothing with this shape."""
    model = build_unchecked(config)
    apply_recompute(model, plan, compiled=True)
    return model


def step(model, config):
    with record(model) as ledger:
        loss = model(*make_batch(config))
    loss.backward()
    return loss.detach(), gradients(model), ledger


@pytest.fixture(params=CASES, scope="module")
def steps(request):
    """(attention, dtype, {name of a plan: (loss, gradients, ledger)}) of compiled models."""
    attention, dtype, names = request.param
    config = config_of(attention, dtype)
    found = {name: step(compiled(config, plan_of(name)), config) for name in names}
    return attention, dtype, found


def test_every_setting_gives_the_same_bits(steps):
    _, _, found = steps
    expected_loss, expected, _ = found["none"]
    for name, (loss, grads, _) in found.items():
        assert torch.equal(loss, expected_loss), name
        assert [key for key in grads if not torch.equal(grads[key], expected[key])] == [], name


def test_bytes_are_as_predicted(steps):
    attention, dtype, found = steps
    shape = replace(LayerShape.of(config_of(attention, dtype), ELEMENT_BYTES[dtype]), compiled=True)
    for name, (_, _, ledger) in found.items():
        plan = plan_of(name)
        assert ledger.total == saved_bytes(shape, plan), name
        assert {layer: size for layer, size in ledger.by_layer().items() if layer} == bytes_per_layer(shape, plan), name


def test_compiling_changes_the_order_of_some_sums_only(steps, relative_error):
    attention, dtype, found = steps
    loss, grads, _ = found["none"]
    config = config_of(attention, dtype)
    plain_loss, plain, _ = step(build_unchecked(config), config)
    assert torch.equal(loss, plain_loss)
    errors = {name: relative_error(grads[name], plain[name]) for name in grads}
    assert all(error < 1e-6 for error in errors.values()), errors
    # Only the bias gradients, sums over tokens, are added in another order.
    assert {name.rpartition(".")[2] for name in grads if not torch.equal(grads[name], plain[name])} <= {"bias"}


@pytest.mark.parametrize("steps", [UNFUSED], ids=["unfused fp32"], indirect=True)
def test_bytes_against_the_same_plan_without_compiling(steps):
    """The documented differences alone: recomputed layernorms keep no statistics, core_attn does keep its own."""
    _, _, found = steps
    config = config_of("unfused")
    model = build_unchecked(config)
    apply_recompute(model, plan_of(OF_EACH_LAYER))
    _, _, without = step(model, config)
    statistics = 8 * config.model.seq_length * 2
    of_heads = config.model.num_attention_heads * statistics
    sizes = found[OF_EACH_LAYER][2].by_layer()
    assert {layer: size - without.by_layer()[layer] for layer, size in sizes.items()} == {
        "": 0,
        "layers.0": of_heads,  # core_attn dropout
        "layers.1": 0,
        "layers.2": of_heads - 2 * statistics,  # all
        "layers.3": 0,
    }


def test_layers_share_their_graph():
    config = config_of("fused")
    torch._dynamo.reset()
    counters.clear()
    step(compiled(config, plan_of("all")), config)
    # Layer 0's first site is 0, which a compiler takes as a constant; the others share one graph.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_the_config_compiles_and_evaluation_does_not():
    plain_config = config_of("fused", recompute=SETTINGS["all"])
    config = Config.from_dict(plain_config.to_dict(), overrides={"training.compile": True})
    model, plain = build_model(config), build_model(plain_config)
    tokens, targets, samples = make_batch(config)
    assert torch.equal(model(tokens, targets, samples), plain(tokens, targets, samples))
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        logits = [model.eval()(tokens[:, :length]) for length in (3, 7)]  # a new shape for every prompt
    assert all(torch.equal(got, plain.eval()(tokens[:, : got.shape[1]])) for got in logits)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_plan_without_compiling_undoes_it():
    config = config_of("unfused")
    model = compiled(config, plan_of("none"))
    apply_recompute(model, plan_of("softmax dropout"))
    assert all("forward" not in block.__dict__ for block in model.layers)
    _, _, ledger = step(model, config)
    assert ("layers.1", "scores") in ledger.by_name()


@pytest.mark.parametrize(("attention", "core_attn_products"), [("unfused", 1), ("fused", 0)])
def test_hardware_flops_of_a_compiled_layer(attention, core_attn_products):
    """core_attn runs the scores' product again there, and not the one with the values."""
    recompute = SETTINGS["all"]
    config = Config.from_dict(config_of(attention, recompute=recompute).to_dict(), overrides={"training.compile": True})
    flops = micro_batch_flops(LayerShape.of(config, 4), plan_of("all"))
    s, b, h = config.model.seq_length, 2, config.model.hidden_size
    assert flops.hardware - flops.model == core_attn_products * 4 * 2 * b * s * s * h
