"""What a row of the ledger says: layers and names in any model, views, plain data. And that recording holds nothing."""

import json

import pytest
import torch
from allocator import still_allocated
from recompute_settings import SETTINGS
from tiny_hugging_face import TOKENS, gpt2, llama, loss_of
from tiny_models import build_unchecked, make_batch, make_config
from torch import nn
from torch.nn import functional

from megaselect.ledger import record
from megaselect.ledger.layer_paths import layer_paths


class Attend(nn.Module):
    """One weight, no modules inside: as people write layers by hand."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4))

    def forward(self, x):
        return torch.softmax(x @ self.weight, -1) @ x


MODELS = {
    "gpt2": (gpt2, {f"transformer.h.{layer}" for layer in range(3)}),
    "llama": (llama, {f"model.layers.{layer}" for layer in range(3)}),
    "ours": (lambda: build_unchecked(make_config(num_layers=1)), {"layers.0"}),
    "torch's": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2), {"layers.0", "layers.1"}),
    "by hand": (lambda: nn.Sequential(nn.Embedding(9, 4), Attend(), Attend(), nn.Linear(4, 9)), {"1", "2"}),
    "elementary modules": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), set()),
    "two unlike parts": (lambda: nn.ModuleList([Attend(), nn.Sequential(nn.Linear(4, 4))]), set()),
    "lists in layers": (lambda: nn.ModuleList([nn.ModuleList([Attend(), Attend()]) for _ in "ab"]), {"0", "1"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_layers_are_the_outermost_elements_of_a_list_of_alike_modules(name):
    make, layers = MODELS[name]
    paths = layer_paths(make())
    assert set(paths.values()) == {"", *layers}
    assert all(path == layer or path.startswith(f"{layer}.") for path, layer in paths.items() if layer)


def named(rows, layer):
    return [(row.name, row.shape) for row in rows if row.layer == layer]


def test_rows_of_a_model_are_named_by_what_made_them():
    with record(model := gpt2(attention="eager")) as ledger:
        loss_of(model)
    b, s, h, a = *TOKENS.shape, 40, 5
    tokens, scores, by_head = (b * s, h), (b, a, s, s), (b * a, s, h // a)
    assert named(ledger.rows, "transformer.h.1") == [
        ("ln_1 input", (b, s, h)),
        ("ln_1: tensor 1", (b, s, 1)),
        ("ln_1: tensor 2", (b, s, 1)),
        ("ln_1 output", tokens),
        ("attn: clone output", (b * a, h // a, s)),
        ("attn: clone output", by_head),
        ("attn: softmax output", scores),
        ("attn: tensor 3", scores),  # torch's dropout on a CPU keeps noise
        ("attn: clone output", by_head),
        ("attn: mul output", (b * a, s, s)),
        ("attn.c_proj input", tokens),
        ("attn.resid_dropout: tensor 0", (b, s, h)),
        ("ln_2 input", (b, s, h)),
        ("ln_2: tensor 1", (b, s, 1)),
        ("ln_2: tensor 2", (b, s, 1)),
        ("ln_2 output", tokens),
        ("mlp.c_fc output", (b, s, 4 * h)),
        ("mlp.act output", (b * s, 4 * h)),
        ("mlp.dropout: tensor 0", (b, s, h)),
    ]
    assert ("lm_head output", (b, s, 113)) in named(ledger.rows, "")


def test_results_of_operators_outside_modules_are_named_by_the_operator():
    model = nn.Sequential(nn.Linear(3, 5), nn.Sigmoid(), nn.Linear(5, 2))
    with record(model) as ledger:
        (model(torch.rand(4, 3)).exp() * 2.0).square().sum()
    names = ["0 input", "1: sigmoid output", "model: exp output", "model: mul output"]
    assert [row.name for row in ledger.rows] == names


def test_our_names_survive_other_modules_in_our_layers():
    config = make_config(num_layers=2)
    model = build_unchecked(config)
    model.layers[1].attention.qkv = nn.Sequential(nn.Dropout(0.5), model.layers[1].attention.qkv)
    with record(model) as ledger:
        model(*make_batch(config))
    names = {layer: [row.name for row in ledger.rows if row.layer == layer] for layer in ("layers.0", "layers.1")}
    assert names["layers.0"][3] == "ln1 output"
    assert names["layers.1"][3:5] == ["attention.qkv.0: tensor 0", "attention.qkv.0 output"]
    assert names["layers.1"][5:] == names["layers.0"][4:]


def test_a_second_forward_pass_in_a_record_is_named_as_the_first():
    config = make_config(SETTINGS["core_attn"])
    model, (tokens, targets, samples) = build_unchecked(config), make_batch(config)
    with record(model) as ledger:
        model(tokens, targets, samples)
        first = len(ledger.rows)
        model(tokens.clone(), targets.clone(), samples.clone())
    assert ledger.rows[first:] == ledger.rows[:first]


def test_views_say_what_they_read_and_what_they_pin():
    x, model = torch.rand(5, 6), nn.Linear(6, 12)
    with record(model) as ledger:
        wide = model(x)
        wide[:1].square()  # a row
        left, right = functional.linear(x, model.weight).chunk(2, -1)
        left * right  # two halves
        thin = functional.linear(x[:, :6], model.weight)[:, :1]
        thin.expand(5, 7).square()  # a column, seven times
        whole = functional.linear(x, model.weight)
        whole.square() + whole.flatten() @ whole.t().reshape(-1)  # all of it, in three shapes, and a copy
    found = [(row.shape, row.view_bytes, row.bytes, row.views) for row in ledger.rows]
    assert found == [
        ((5, 6), 120, 120, 1),
        ((1, 12), 48, 240, 1),
        ((5, 6), 240, 240, 2),
        ((5, 7), 20, 240, 1),
        ((5, 12), 240, 240, 1),
        ((60,), 240, 240, 1),
    ]


def test_q_k_v_are_three_views_that_read_all_of_what_they_pin():
    config = make_config()
    model = build_unchecked(config)
    with record(model) as ledger:
        model(*make_batch(config))
    rows = [row for row in ledger.rows if row.name == "q, k, v"]
    one = 4 * 21 * 2 * 48
    assert {(row.views, row.view_bytes, row.bytes) for row in rows} == {(3, 3 * one, 3 * one)}
    assert {row.shape for row in rows} == {(2 * 4, 21, 12)}
    assert all(row.view_bytes == row.bytes for row in ledger.rows)


@pytest.mark.parametrize("name", ["none", "all", "uniform 2"])
def test_rows_as_plain_data(name):
    config = make_config(SETTINGS[name], dtype="bf16")
    model = build_unchecked(config)
    with record(model) as ledger:
        model(*make_batch(config))
    rows = json.loads(json.dumps(ledger.as_dicts()))
    assert sum(row["bytes"] for row in rows if row["status"] == "saved") == ledger.total
    assert sum(row["bytes"] for row in rows if row["status"] == "recomputed") == ledger.recomputed_total
    first = next(row for row in rows if row["name"] == "block input")
    assert first == {
        "layer": "layers.0-1" if name == "uniform 2" else "layers.0",
        "module": {"none": "layers.0.ln1", "all": "layers.0.ln1", "uniform 2": "layers.0-1"}[name],
        "name": "block input",
        "shape": [21, 2, 48],
        "dtype": "bfloat16",
        "bytes": 2 * 21 * 2 * 48,
        "view_bytes": 2 * 21 * 2 * 48,
        "views": 1,
        "held_by": "autograd",
        "status": "saved",
    }


@pytest.mark.parametrize("name", ["none", "all", "uniform 2"])
def test_a_ledger_keeps_no_tensor_alive(name):
    config = make_config(SETTINGS[name], num_layers=2)
    model, batch = build_unchecked(config), make_batch(config)

    def forward():
        with record(model) as ledger:
            model(*batch)  # a graph that nobody holds
        return ledger

    assert still_allocated(forward) == 0


def test_tensors_without_storage_of_their_own_pass():
    """A nested tensor is counted by its parts, a sparse one is not counted; neither is an error."""
    model = nn.Identity()
    weight = torch.rand(5, 3, requires_grad=True)
    parts = torch.nested.nested_tensor([torch.rand(2, 3), torch.rand(4, 3)], layout=torch.jagged, requires_grad=True)
    with record(model) as ledger:
        model(parts).square()
        torch.sparse.mm(model(torch.eye(5).to_sparse()), weight)
    assert [row.bytes for row in ledger.rows if row.dtype == torch.float32][:1] == [4 * 6 * 3]
