"""A second, independent oracle for the ledger: what torch's CPU allocator handed out in forward and did not get back.

It sees what saved-tensor hooks cannot: tensors on ctx attributes, in closures and in caches.
"""

import pytest
import torch
from allocator import LOSS_BYTES, still_allocated
from recompute_settings import SETTINGS
from tiny_hugging_face import TOKENS, gpt2, loss_of
from tiny_models import build_unchecked, make_batch, make_config
from torch import nn
from turns import in_turns

from megaselect.ledger import record

ALLOCATIONS = ["none", "softmax", "dropout", "softmax dropout", "core_attn", "layernorm", "gelu", "all"]


@in_turns(
    2,
    {
        "name": [*ALLOCATIONS, "uniform 2", "block 3"],
        "dtype": ["fp32", "bf16"],
        "attention": ["unfused", "fused", "sdpa"],
    },
)
def test_the_allocator_agrees_with_the_ledger(name, dtype, attention):
    dropout_p = 0.0 if attention == "sdpa" else 0.1
    config = make_config(SETTINGS[name], dtype=dtype, attention=attention, attention_dropout_p=dropout_p)
    model, batch = build_unchecked(config), make_batch(config)
    with record(model) as ledger:
        model(*batch)
    held_before = {"token indices", "sample indices"}
    made = sum(row.bytes for row in ledger.rows if row.name not in held_before)
    assert still_allocated(lambda: model(*batch)) == made + LOSS_BYTES


@pytest.mark.parametrize("name", ["none", "softmax dropout", "core_attn", "uniform 2"])
def test_nothing_but_the_loss_is_kept_without_gradients(name):
    config = make_config(SETTINGS[name])
    model, batch = build_unchecked(config), make_batch(config)
    with torch.no_grad():
        for mode in (model.train(), model.eval()):
            with record(mode) as ledger:
                loss = mode(*batch)
            assert ledger.rows == []
            assert loss.grad_fn is None
            assert still_allocated(lambda mode=mode: mode(*batch)) == LOSS_BYTES


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_the_ledger_reads_a_hugging_face_model(dropout_p):
    model = gpt2(dropout_p)

    def forward():
        return loss_of(model)

    with record(model) as ledger:
        forward()
    made = ledger.total - TOKENS.nbytes  # the embedding keeps the tokens, which were there before
    assert still_allocated(forward) == made + LOSS_BYTES
    assert {row.layer for row in ledger.rows} == {"", "transformer.h.0", "transformer.h.1", "transformer.h.2"}
    assert any(row.module == "transformer.h.1.mlp.c_proj" for row in ledger.rows)


def test_the_ledger_reads_a_sequential_model():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 14), nn.GELU(), nn.Linear(14, 3))
    x = torch.randn(5, 6)
    with record(model) as ledger:
        model(x).square().sum()
    # The input, ReLU's output for both ReLU and the next product, GELU's input and output, and what is squared.
    assert [row.bytes for row in ledger.rows] == [4 * 5 * width for width in (6, 10, 14, 14, 3)]
    assert [row.module for row in ledger.rows] == ["0", "1", "3", "4", ""]
    assert still_allocated(lambda: model(x).square().sum()) == ledger.total - x.nbytes + LOSS_BYTES


def test_a_view_counts_with_all_that_it_pins():
    def forward():
        row = nn.functional.linear(x, model.weight)[:1]
        return row.square().sum()

    model, x = nn.Linear(6, 10), torch.randn(5, 6)
    with record(model) as ledger:
        forward()
    assert [(row.shape, row.bytes) for row in ledger.rows] == [((5, 6), 4 * 5 * 6), ((1, 10), 4 * 5 * 10)]
    assert still_allocated(forward) == ledger.total - x.nbytes + LOSS_BYTES


def test_tokens_and_targets_in_one_storage_count_once_with_all_of_it():
    config = make_config(batch=1)
    model, (tokens, _, samples) = build_unchecked(config), make_batch(config)
    with record(model) as apart:
        model(tokens, tokens.clone(), samples)
    text = torch.cat([tokens, tokens], 1)  # [1, 2s]: both slices below keep the whole
    s = config.model.seq_length
    with record(model) as together:
        model(text[:, :s], text[:, 1 : s + 1], samples)
    assert together.total == apart.total
    assert together.by_name()["", "token indices"] == text.nbytes


def test_parameters_buffers_and_views_of_them_are_not_counted():
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 4), nn.BatchNorm1d(4).eval())
    indices = torch.arange(3)
    with record(model) as ledger:
        nn.functional.linear(model(indices), model[1].weight[:, :4])
    # The indices, the inputs of the product, of the normalisation and of the second product.
    assert [row.bytes for row in ledger.rows] == [8 * 3, 4 * 3 * 5, 4 * 3 * 4, 4 * 3 * 4]


@pytest.mark.parametrize("name", ["none", "softmax dropout", "core_attn", "uniform 2"])
def test_recording_changes_nothing(name):
    config = make_config(SETTINGS[name])
    model, batch = build_unchecked(config), make_batch(config)
    loss = model(*batch)
    with record(model) as ledger:
        recorded = model(*batch)
    rows = list(ledger.rows)
    recorded.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss.backward()
    assert torch.equal(loss, recorded)
    assert all(map(torch.equal, gradients, (parameter.grad for parameter in model.parameters())))
    assert ledger.rows == rows
    assert hooks(model) == 0


def test_a_failing_forward_leaves_no_hooks():
    config = make_config()
    model, (tokens, targets, samples) = build_unchecked(config), make_batch(config)
    with pytest.raises(IndexError), record(model):
        model(tokens + 128, targets, samples)
    assert hooks(model) == 0
    with record(model) as ledger:
        model(tokens, targets, samples)
    assert ledger.by_layer()["layers.0"] > 0


def test_a_failed_forward_inside_a_record_does_not_shift_the_names_of_the_next():
    config = make_config()
    model, (tokens, targets, samples) = build_unchecked(config), make_batch(config)
    with record(model) as ledger:
        with pytest.raises(IndexError):
            model(tokens + 128, targets, samples)
        before = len(ledger.rows)  # torch keeps the tokens before it looks them up
        model(tokens, targets, samples)
    with record(model) as undisturbed:
        model(tokens, targets, samples)
    assert ledger.rows[before:] == undisturbed.rows


def hooks(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_backward_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
