"""Layers under torch.compile: one graph a setting, the bytes that are predicted, the same bits in every mode."""

from dataclasses import replace

import pytest
import torch
from recompute_settings import SETTINGS, selective
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
# Settings that differ in what the graph recomputes, in an order in which a graph that served the next one would show.
IN_TURN = {
    "unfused": ["none", "core_attn dropout", "gelu", "all", "softmax dropout", "layernorm gelu odd", "uniform 2"],
    "fused": ["none", "core_attn", "all", "block 3"],
    "sdpa": ["none", "all"],
}
CASES = [("unfused", "fp32"), ("fused", "bf16"), ("sdpa", "fp32")]


def config_of(name, attention, dtype):
    dropout = {"attention_dropout_p": 0.0} if attention == "sdpa" else {}
    return make_config(SETTINGS[name], dtype=dtype, attention=attention, **dropout)


def compiled(config):
    """The model with its layers compiled, for settings too that save nothing with this shape."""
    model = build_unchecked(config)
    apply_recompute(model, make_plan(config.recompute, config.model.num_layers), compiled=True)
    return model


def step(model, config):
    with record(model) as ledger:
        loss = model(*make_batch(config))
    loss.backward()
    return loss.detach(), gradients(model), ledger


@pytest.fixture(params=CASES, ids=" ".join, scope="module")
def steps(request):
    """(attention, dtype, {setting: (loss, gradients, ledger)}) of compiled models."""
    attention, dtype = request.param
    configs = {name: config_of(name, attention, dtype) for name in IN_TURN[attention]}
    return attention, dtype, {name: step(compiled(config), config) for name, config in configs.items()}


def test_every_setting_gives_the_same_bits(steps):
    _, _, found = steps
    expected_loss, expected, _ = found["none"]
    for name, (loss, grads, _) in found.items():
        assert torch.equal(loss, expected_loss), name
        assert [key for key in grads if not torch.equal(grads[key], expected[key])] == [], name


def test_bytes_are_as_predicted(steps):
    attention, dtype, found = steps
    for name, (_, _, ledger) in found.items():
        config = config_of(name, attention, dtype)
        shape = replace(LayerShape.of(config, ELEMENT_BYTES[dtype]), compiled=True)
        plan = make_plan(config.recompute, config.model.num_layers)
        assert ledger.total == saved_bytes(shape, plan), name
        assert {layer: size for layer, size in ledger.by_layer().items() if layer} == bytes_per_layer(shape, plan), name


def test_compiling_changes_the_order_of_some_sums_only(steps, relative_error):
    attention, dtype, found = steps
    loss, grads, _ = found["none"]
    config = config_of("none", attention, dtype)
    plain_loss, plain, _ = step(build_unchecked(config), config)
    assert torch.equal(loss, plain_loss)
    errors = {name: relative_error(grads[name], plain[name]) for name in grads}
    assert all(error < 1e-6 for error in errors.values()), errors
    # Only the bias gradients, sums over tokens, are added in another order.
    assert {name.rpartition(".")[2] for name in grads if not torch.equal(grads[name], plain[name])} <= {"bias"}


@pytest.mark.parametrize("name", ["core_attn dropout", "gelu"])
def test_bytes_against_the_same_setting_without_compiling(name):
    """The documented differences alone: recomputed layernorms keep no statistics, core_attn does keep its own."""
    config = config_of(name, "unfused", "fp32")
    layers, s, b, a = 4, config.model.seq_length, 2, config.model.num_attention_heads
    _, _, with_graph = step(compiled(config), config)
    _, _, without = step(build_unchecked(config), config)
    extra = layers * 8 * a * s * b if "core_attn" in name else 0
    assert with_graph.total - without.total == extra


def test_layers_share_their_graph():
    config = config_of("all", "fused", "fp32")
    torch._dynamo.reset()
    counters.clear()
    step(compiled(config), config)
    # Layer 0's first site is 0, which a compiler takes as a constant; the others share one graph.
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_the_config_compiles_and_evaluation_does_not():
    settings = {"training.compile": True}
    config = Config.from_dict(config_of("all", "fused", "fp32").to_dict(), overrides=settings)
    model, plain = build_model(config), build_model(config_of("all", "fused", "fp32"))
    tokens, targets, samples = make_batch(config)
    assert torch.equal(model(tokens, targets, samples), plain(tokens, targets, samples))
    torch._dynamo.reset()
    counters.clear()
    with torch.no_grad():
        logits = [model.eval()(tokens[:, :length]) for length in (3, 7)]  # a new shape for every prompt
    assert all(torch.equal(got, plain.eval()(tokens[:, : got.shape[1]])) for got in logits)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_plan_without_compiling_undoes_it():
    config = config_of("none", "unfused", "fp32")
    model = compiled(config)
    recompute = selective("softmax", "dropout")
    apply_recompute(model, make_plan(make_config(recompute).recompute, 4))
    assert all("forward" not in block.__dict__ for block in model.layers)
    _, _, ledger = step(model, config)
    assert ("layers.1", "scores") in ledger.by_name()


@pytest.mark.parametrize(("attention", "core_attn_products"), [("unfused", 1), ("fused", 0)])
def test_hardware_flops_of_a_compiled_layer(attention, core_attn_products):
    """core_attn runs the scores' product again there, and not the one with the values."""
    config = Config.from_dict(config_of("all", attention, "fp32").to_dict(), overrides={"training.compile": True})
    flops = micro_batch_flops(LayerShape.of(config, 4), make_plan(config.recompute, 4))
    s, b, h = config.model.seq_length, 2, config.model.hidden_size
    assert flops.hardware - flops.model == core_attn_products * 4 * 2 * b * s * s * h
