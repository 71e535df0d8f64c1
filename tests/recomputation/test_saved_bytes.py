"""The second promise: what theory predicts is what the ledger finds on the running model, row by row."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recompute_settings import SETTINGS, full, selective
from tiny_models import build_unchecked, make_batch, make_config
from torch.nn.functional import scaled_dot_product_attention
from turns import in_turns

from megaselect import build_model
from megaselect.ledger import record
from megaselect.prediction.saved_bytes import LayerShape, bytes_per_layer, saved_bytes, saved_tensors
from megaselect.recomputation.plan import make_plan
from megaselect.recompute_modules import MODULES

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
ODD = {"hidden_size": 30, "num_attention_heads": 5, "ffn_hidden_size": 44, "seq_length": 17, "vocab_size": 131}


def measure(model, config):
    with record(model) as ledger:
        model(*make_batch(config))
    return ledger


def assert_as_predicted(config):
    shape = LayerShape.of(config, ELEMENT_BYTES[config.training.dtype])
    plan = make_plan(config.recompute, config.model.num_layers)
    ledger = measure(build_unchecked(config), config)
    rows = saved_tensors(shape, plan)
    assert ledger.by_name() == {(row.layer, row.name): row.bytes for row in rows}
    assert len(rows) == len(ledger.by_name())
    assert {layer: size for layer, size in ledger.by_layer().items() if layer} == bytes_per_layer(shape, plan)
    assert ledger.total == saved_bytes(shape, plan) == sum(row.bytes for row in ledger.rows)


PROBABILITIES = [(0.1, 0.1), (0.1, 0.0), (0.0, 0.1), (0.0, 0.0)]


@in_turns(3, {"setting": SETTINGS, "dtype": ELEMENT_BYTES.keys(), ("attention_p", "hidden_p"): PROBABILITIES})
def test_every_row_is_as_predicted(setting, dtype, attention_p, hidden_p):
    dropout = {"attention_dropout_p": attention_p, "hidden_dropout_p": hidden_p}
    assert_as_predicted(make_config(setting, dtype=dtype, batch=3, **ODD, **dropout))


ATTENTIONS = [("fused", 0.1), ("fused", 0.0), ("sdpa", 0.0)]


@in_turns(
    3,
    {
        "setting": SETTINGS,
        "dtype": ["fp32", "bf16"],
        ("attention", "attention_p"): ATTENTIONS,
        "hidden_p": [0.1, 0.0],
    },
)
def test_every_row_is_as_predicted_with_each_attention(setting, dtype, attention, attention_p, hidden_p):
    model = {"attention": attention, "attention_dropout_p": attention_p, "hidden_dropout_p": hidden_p}
    assert_as_predicted(make_config(setting, dtype=dtype, batch=3, loss_chunk_tokens=10, **ODD, **model))


def any_setting():
    """One of the settings, or selective with any set of modules."""
    modules = st.lists(st.sampled_from(MODULES), min_size=1, unique=True)
    return st.sampled_from(sorted(SETTINGS)).map(SETTINGS.get) | modules.map(lambda names: selective(*names))


@st.composite
def configs(draw):
    heads = draw(st.integers(1, 5))
    probability = st.sampled_from([0.0, 0.002, 0.1, 0.5])
    attention = draw(st.sampled_from(["unfused", "fused", "sdpa"]))
    return make_config(
        draw(any_setting()),
        dtype=draw(st.sampled_from(sorted(ELEMENT_BYTES))),
        batch=draw(st.integers(1, 4)),
        num_attention_heads=heads,
        hidden_size=heads * draw(st.integers(1, 9)),
        ffn_hidden_size=draw(st.integers(1, 50)),
        seq_length=draw(st.integers(1, 33)),
        vocab_size=draw(st.integers(1, 300)),
        attention=attention,
        loss_chunk_tokens=draw(st.sampled_from([None, 1, 40])),
        attention_dropout_p=0.0 if attention == "sdpa" else draw(probability),
        hidden_dropout_p=draw(probability),
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(configs())
def test_every_row_is_as_predicted_for_any_shape(config):
    assert_as_predicted(config)


@pytest.mark.soak
@settings(max_examples=200, deadline=None, derandomize=True)
@given(configs())
def test_every_row_is_as_predicted_for_many_shapes(config):
    assert_as_predicted(config)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(any_setting(), st.sampled_from(["unfused", "fused"]), st.integers(1, 9), st.sampled_from([0.0, 0.125]))
def test_the_triton_kernels_keep_what_is_predicted(setting, attention, sequence, dropout_p):
    model = {"hidden_size": 6, "num_attention_heads": 2, "ffn_hidden_size": 10, "seq_length": sequence, "vocab_size": 9}
    model |= {"num_layers": 1, "attention": attention, "dropout_p": dropout_p, "kernel_backend": "triton"}
    settings_of_layers = {"layers", "num_layers"} & setting.keys()
    assert_as_predicted(make_config({} if settings_of_layers else setting, batch=1, **model))


def test_the_batch_of_a_shape_can_be_another_one_than_the_run_s():
    config = make_config()
    model, plan = build_model(config), make_plan(config.recompute, config.model.num_layers)
    with record(model) as ledger:
        model(*make_batch(config, batch=5))
    assert ledger.total == saved_bytes(LayerShape.of(config, 4, batch=5), plan)


# From docs/recompute.md, in units of sbh and as²b bytes, without the fp32 statistics: (16 bit, fp32).
PER_LAYER = {
    "none": ((34, 5), (66, 9)),
    "dropout": ((32, 2), (64, 4)),
    "softmax": ((34, 3), (66, 5)),
    "softmax dropout": ((32, 2), (64, 4)),
    "core_attn": ((34, 0), (66, 0)),
    "core_attn dropout": ((32, 0), (64, 0)),
    "layernorm": ((30, 5), (58, 9)),
    "gelu": ((26, 5), (50, 9)),
    "all": ((20, 0), (40, 0)),
    "uniform 1": ((2, 0), (4, 0)),
}


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", PER_LAYER)
def test_a_layer_keeps_what_the_closed_formulas_say(name, dtype):
    s, b, h, a = 23, 3, 42, 7
    config = make_config(
        SETTINGS[name], dtype=dtype, batch=b, hidden_size=h, num_attention_heads=a, ffn_hidden_size=4 * h, seq_length=s
    )
    ledger = measure(build_model(config), config)
    of_hidden, of_scores = PER_LAYER[name][dtype == "fp32"]
    statistics = 0 if name == "uniform 1" else 16 * s * b
    if name in ("softmax", "softmax dropout"):
        statistics += 8 * a * s * b
    expected = of_hidden * s * b * h + of_scores * a * s * s * b + statistics
    assert [ledger.by_layer()[f"layers.{layer}"] for layer in range(4)] == [expected] * 4


# The same with attention that never writes scores; what is inherent there changes nothing.
PER_LAYER_FUSED = {
    "none": (34, 66),
    "softmax": (34, 66),
    "core_attn": (34, 66),
    "dropout": (32, 64),
    "softmax dropout": (32, 64),
    "softmax dropout layernorm": (28, 56),
    "all": (20, 40),
    "uniform 1": (2, 4),
}


@in_turns(2, {"name": PER_LAYER_FUSED.keys(), "attention": ["fused", "sdpa"], "dtype": ["bf16", "fp32"]})
def test_a_layer_with_fused_attention_keeps_what_the_closed_formulas_say(name, attention, dtype):
    s, b, h, a = 23, 3, 42, 7
    shape = {"hidden_size": h, "num_attention_heads": a, "ffn_hidden_size": 4 * h, "seq_length": s}
    dropout = {"attention_dropout_p": 0.1 if attention == "fused" else 0.0}
    config = make_config(SETTINGS[name], dtype=dtype, batch=b, attention=attention, **shape, **dropout)
    statistics = 0 if name == "uniform 1" else 16 * s * b + 4 * a * s * b
    expected = PER_LAYER_FUSED[name][dtype == "fp32"] * s * b * h + statistics
    ledger = measure(build_unchecked(config), config)
    assert [ledger.by_layer()[f"layers.{layer}"] for layer in range(4)] == [expected] * 4


class AttentionOfAGpu(torch.autograd.Function):
    """torch's attention, keeping two places of a random state as well, as its kernels for GPUs do."""

    @staticmethod
    def forward(ctx, query, key, value, scale):
        context = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        sum_of_rows = torch.zeros(query.shape[:3])
        places = torch.zeros(2, dtype=torch.uint64), torch.tensor(0, dtype=torch.int64)
        ctx.save_for_backward(query, key, value, context, sum_of_rows, *places)
        return context


def test_places_of_an_unused_random_state_are_no_activations(monkeypatch):
    config = make_config(attention="sdpa", attention_dropout_p=0.0)
    expected = measure(build_model(config), config)
    module = "torch.nn.functional.scaled_dot_product_attention"
    monkeypatch.setattr(module, lambda q, k, v, is_causal, scale: AttentionOfAGpu.apply(q, k, v, scale))
    assert measure(build_model(config), config).by_name() == expected.by_name()


@pytest.mark.parametrize("name", ["none", "softmax dropout", "uniform 1"])
def test_outside_the_layers_is_kept_what_the_closed_formula_says(name):
    config = make_config(SETTINGS[name], dtype="bf16", batch=3, **ODD)
    s, b, h, padded = 17, 3, 30, 256
    mask = s * b * h if name == "none" else 0
    ids, final_layernorm, loss = 16 * s * b + 8 * b, 4 * s * b * h + 8 * s * b, 2 * s * b * padded + 4 * s * b
    assert measure(build_model(config), config).by_layer()[""] == ids + mask + final_layernorm + loss


def test_modes_keep_less_and_less():
    core_attn, everything = selective("core_attn", "dropout"), SETTINGS["all"]
    order = [{}, selective("softmax", "dropout"), core_attn, everything, full(), full(num_layers=4)]
    totals = [measure(build_model(config), config).total for config in map(make_config, order)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_the_rows_say_which_module_kept_what():
    config = make_config(selective("softmax", "dropout"), dtype="bf16", batch=3)
    rows = {(row.module, row.name): row for row in measure(build_model(config), config).rows}
    s, b, h, a = 21, 3, 48, 4
    scores = rows["layers.2.attention.core", "scores"]
    assert (scores.layer, scores.shape, scores.dtype) == ("layers.2", (b, a, s, s), torch.bfloat16)
    qkv = rows["layers.2.attention.core", "q, k, v"]
    assert qkv.bytes == 3 * math.prod(qkv.shape) * 2 == 6 * s * b * h
    assert rows["layers.2.mlp.gelu", "fc1 output"].bytes == 2 * s * b * 80
    assert rows["layers.2.ln1", "ln1 statistics"].dtype == torch.float32
