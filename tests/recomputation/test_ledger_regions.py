"""Checkpointed regions in the ledger: what their caches and functions hold, and what backward will make again.

The oracles are torch's allocator, the same model without regions, and theory.
"""

import contextlib
import functools
from collections import Counter

import pytest
import torch
from allocator import LOSS_BYTES, still_allocated
from recompute_settings import SETTINGS
from tiny_hugging_face import MODELS, TOKENS, checkpoint_layers, gpt2, llama, loss_of
from tiny_models import build_unchecked, gradients, make_batch, make_config
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from megaselect.compatibility import last_cached
from megaselect.ledger import record
from megaselect.models.gpt.block import Block
from megaselect.prediction.saved_bytes import LayerShape, layer_tensors

PRODUCTS = [getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")]
OURS = [getattr(torch.ops.megaselect, name).default for name in ("layer_norm", "softmax_dropout_value", "gelu")]


def saving(*ops):
    """A selective checkpoint's contexts that keep what these operators return."""
    return {"context_fn": functools.partial(create_selective_checkpoint_contexts, list(ops))}


WRAPPERS = {
    "whole layer": {},
    "reentrant": {"checkpoint_impl": CheckpointImpl.REENTRANT},
    "products saved": saving(*PRODUCTS),
    "products and ours saved": saving(*PRODUCTS, *OURS),
}


def wrap_blocks(model, settings):
    wrapper = functools.partial(checkpoint_wrapper, preserve_rng_state=False, **settings)
    apply_activation_checkpointing(model, wrapper, check_fn=lambda module: isinstance(module, Block))


@pytest.mark.parametrize("name", WRAPPERS)
def test_checkpoints_around_our_layers_keep_what_the_allocator_says(name):
    config = make_config(num_layers=2)
    model, batch = build_unchecked(config), make_batch(config)
    with record(model) as plain:
        model(*batch)
    wrap_blocks(model, WRAPPERS[name])
    with record(model) as ledger:
        model(*batch)
    made = sum(row.bytes for row in ledger.rows if row.name not in ("token indices", "sample indices"))
    assert still_allocated(lambda: model(*batch)) == made + LOSS_BYTES
    assert {row.held_by for row in ledger.rows} == {"autograd", *(["cache"] if "saved" in name else [])}
    assert set(ledger.by_layer()) == {"", "layers.0", "layers.1"}
    if name == "whole layer":  # the rest is made again, and has the names that it has where it is kept
        both = ledger.by_name() | {(row.layer, row.name): 0 for row in ledger.recomputed}
        for row in ledger.recomputed:
            both[row.layer, row.name] += row.bytes
        assert both == plain.by_name()


def test_what_a_cache_keeps_is_named_by_its_operator_and_counted_once():
    config = make_config(num_layers=2)
    model, batch = build_unchecked(config), make_batch(config)
    wrap_blocks(model, saving(*PRODUCTS))
    with record(model) as ledger:
        model(*batch)
    cached = [row for row in ledger.rows if row.held_by == "cache" and row.layer == "layers.1"]
    assert [(row.name, row.bytes) for row in cached] == [
        ("attention.qkv: addmm output", 4 * 21 * 2 * 3 * 48),  # q, k and v in the region are views of it
        ("attention.core: baddbmm output", 4 * 4 * 2 * 21 * 21),
        ("attention.projection: mm output", 4 * 21 * 2 * 48),
        ("mlp.fc1: addmm output", 4 * 21 * 2 * 80),
        ("mlp.fc2: mm output", 4 * 21 * 2 * 48),
    ]
    assert not {"q, k, v", "fc1 output"} & {row.name for row in ledger.recomputed}


def sizes(rows):
    return Counter((row.layer, row.dtype, row.bytes) for row in rows)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpointed_model_recomputes_what_the_model_alone_keeps(name):
    model = MODELS[name]()
    with record(model) as plain:
        loss_of(model)
    checkpoint_layers(model)
    with record(model) as ledger:
        loss_of(model)
    assert plain.recomputed == []
    assert still_allocated(lambda: loss_of(model)) == ledger.total - TOKENS.nbytes + LOSS_BYTES
    closures = sizes(row for row in ledger.rows if row.held_by == "closure")
    found = sizes([*ledger.rows, *ledger.recomputed]) - closures
    assert not found - sizes(plain.rows)
    assert sizes(plain.rows) - found <= closures  # the model alone keeps of these what it reads
    inputs = [row for row in ledger.rows if row.layer and row.held_by == "autograd"]
    assert [row.name for row in inputs] == ["block input"] * 3
    assert [row.shape for row in inputs] == [(3, 19, 40)] * 3
    assert len({row.layer for row in inputs}) == 3


def test_what_a_checkpointed_function_closes_over_is_saved():
    model = checkpoint_layers(llama(attention="eager"))
    with record(model) as ledger:
        loss_of(model)
    held = [(row.name, row.shape) for row in ledger.rows if row.held_by == "closure"]
    assert held == [
        ("block input attention_mask", (3, 1, 19, 19)),
        ("block input position_embeddings", (1, 19, 8)),
        ("block input position_embeddings", (1, 19, 8)),
        ("block input position_ids", (1, 19)),
    ]
    scale_bytes = 3 * 8  # torch wraps the Python number that scores are multiplied with, and shows it to no hook
    assert still_allocated(lambda: loss_of(model)) == ledger.total - TOKENS.nbytes + LOSS_BYTES + scale_bytes


@pytest.mark.parametrize("name", MODELS)
def test_selective_checkpoints_of_others_models_keep_what_the_allocator_says(name):
    model = checkpoint_layers(MODELS[name](), **saving(*PRODUCTS))
    with record(model) as ledger:
        loss_of(model)
    assert still_allocated(lambda: loss_of(model)) == ledger.total - TOKENS.nbytes + LOSS_BYTES
    per_layer = [[row.name for row in ledger.rows if row.held_by == "cache" and row.layer.endswith(n)] for n in "012"]
    assert per_layer[0] == per_layer[1] == per_layer[2]
    assert len(per_layer[0]) >= 4


class Stack(nn.Module):
    """Regions as people write them: a function around two blocks that closes over a gate, and one inside another."""

    def __init__(self, nested):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
        self.nested = nested

    def forward(self, x):
        gate = torch.rand(5, 6)
        inner = functools.partial(checkpoint, self.blocks[3], use_reentrant=False, preserve_rng_state=False)
        last = inner if self.nested else self.blocks[3]

        def region(x):
            return last(self.blocks[2](x * gate))

        x = self.blocks[1](self.blocks[0](x)).cos()
        return checkpoint(region, x, use_reentrant=False, preserve_rng_state=False)


@pytest.mark.parametrize("nested", [False, True])
def test_a_region_s_input_belongs_to_the_first_layer_that_runs_in_it(nested):
    model, x = Stack(nested), torch.rand(5, 6)
    with record(model) as ledger:
        model(x).sum()
    assert [(row.layer, row.name, row.held_by) for row in ledger.rows] == [
        ("blocks.0", "0 input", "autograd"),
        ("blocks.0", "1: tanh output", "autograd"),
        ("blocks.1", "1: tanh output", "autograd"),
        ("", "model: tensor 1", "closure"),
        ("blocks.2", "block input", "autograd"),
    ]
    assert still_allocated(lambda: model(x).sum()) == ledger.total - x.nbytes + LOSS_BYTES
    assert [row.layer for row in ledger.recomputed] == ["blocks.2", "blocks.2", "blocks.3"]
    assert {row.bytes for row in ledger.recomputed} == {4 * 5 * 6}


SOFTMAX_REBUILT = frozenset({"softmax", "dropout"})
REBUILT = {  # setting: (what its regions make again, how the ops inside are set)
    "none": (set(), frozenset()),
    "softmax dropout": (set(), frozenset()),  # their ops make them again inside themselves
    "core_attn dropout": ({"scores", "softmax statistics"}, SOFTMAX_REBUILT),
    "layernorm": ({"ln1 output", "ln2 output"}, frozenset()),
    "gelu": ({"gelu output"}, frozenset()),
    "all": ({"scores", "softmax statistics", "ln1 output", "ln2 output", "gelu output"}, SOFTMAX_REBUILT),
    "uniform 1": (None, SOFTMAX_REBUILT),  # everything but the input
}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", REBUILT)
def test_what_our_regions_make_again_is_what_theory_has_for_it(name, dtype):
    config = make_config(SETTINGS[name], dtype=dtype)
    model = build_unchecked(config)
    with record(model) as ledger:
        model(*make_batch(config))
    names, inside = REBUILT[name]
    kept = layer_tensors(LayerShape.of(config, {"fp32": 4, "bf16": 2}[dtype]), inside)
    expected = {
        tensor: size
        for tensor, size in kept.items()
        if (tensor in names if names is not None else tensor != "block input")
    }
    for layer in range(4):
        found = Counter()
        for row in ledger.recomputed:
            if row.layer == f"layers.{layer}":
                found[row.name] += row.bytes
        assert found == expected
    assert ledger.recomputed_total == 4 * sum(expected.values())


@pytest.mark.parametrize("settings", [{}, saving(*PRODUCTS)], ids=["whole layer", "products saved"])
def test_recording_regions_changes_no_bit(settings):
    results = []
    for watch in (record, contextlib.nullcontext):
        torch.manual_seed(3)
        model = checkpoint_layers(gpt2(), **settings, preserve_rng_state=True)
        with watch(model):
            loss = loss_of(model)
        loss.backward()
        results.append({"loss": loss.detach(), "random state": torch.get_rng_state(), **gradients(model)})
    recorded, expected = results
    assert all(torch.equal(recorded[name], expected[name]) for name in expected)


# Which of its generators checkpoint() calls; from 2.14 the second name is left for others.
REGION = next(
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(torch_checkpoint, name)
)


def test_torch_is_as_it_was_after_a_record_and_after_a_failure():
    def places():
        caching = torch_checkpoint._CachingTorchDispatchMode
        return (
            torch_checkpoint._checkpoint_hook,
            getattr(torch_checkpoint, REGION),
            caching.__torch_dispatch__,
        )

    before, model, x = places(), Stack(False), torch.rand(5, 7)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), record(model):
        checkpoint(model.blocks[0], x, use_reentrant=False)
    assert places() == before
    with record(model) as ledger:
        model(x[:, :6])
        during = places()
    assert places() == before
    assert all(now is not then for now, then in zip(during, before, strict=True))
    assert ledger.total > 0


def test_the_cache_of_torch_2_11_is_read_too():
    """There an operator's entries are a list of what was saved; later a dictionary by call number."""

    class Entry:
        def __init__(self, val):
            self.val = val

    first, second = torch.rand(2), torch.rand(3)
    not_saved = object()
    assert last_cached([Entry(first), (Entry(second), Entry(None))]) == [second]
    assert last_cached({0: Entry(first), 1: (Entry(second), Entry(1))}) == [second]
    assert last_cached({0: Entry(first), 1: not_saved}) == last_cached([]) == last_cached(None) == []
