"""Checkpoints and compilers that others put around our blocks and model, mixed with every kind of ours."""

import functools

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, gradients, make_batch, make_config
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode
from turns import in_turns

from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.block import Block
from megaselect.recomputation.plan import make_plan

pytestmark = pytest.mark.filterwarnings("ignore:.*draws random numbers")

LAYERS = 2
MODES = ["none", "softmax dropout", "core_attn", "layernorm", "gelu", "all", "uniform 1", "uniform 2"]
MATMULS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}
OURS = {
    torch.ops.megaselect.softmax_dropout_value.default,
    torch.ops.megaselect.fused_attention.default,
    torch.ops.megaselect.bias_dropout_residual.default,
    torch.ops.megaselect.bias_dropout_residual_layer_norm.default,
    torch.ops.megaselect.layer_norm.default,
    torch.ops.megaselect.gelu.default,
}


def contexts_saving(saved):
    """The selective checkpoint's contexts of a policy that keeps what `saved` ops return."""

    def policy(_, op, *__, **___):
        return CheckpointPolicy.MUST_SAVE if op in saved else CheckpointPolicy.PREFER_RECOMPUTE

    return functools.partial(create_selective_checkpoint_contexts, policy)


WRAPPERS = {
    "whole block": functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.NO_REENTRANT),
    "reentrant": functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT),
    "matmuls saved": functools.partial(checkpoint_wrapper, context_fn=contexts_saving(MATMULS)),
    "matmuls and our ops saved": functools.partial(checkpoint_wrapper, context_fn=contexts_saving(MATMULS | OURS)),
}


def wrap_blocks(model, wrapper):
    apply_activation_checkpointing(model, wrapper, check_fn=lambda module: isinstance(module, Block))
    assert all(not isinstance(layer, Block) for layer in model.layers)


def append_dropout(model):
    """torch's own dropout after two of the products."""
    for block in model.layers:
        block.attention.qkv = nn.Sequential(block.attention.qkv, nn.Dropout(0.2))
        block.mlp.fc2 = nn.Sequential(nn.Dropout(0.2), block.mlp.fc2)


def step(model, config):
    """{"loss": ..., "random state": ..., a parameter: its gradient}, by the names of a model that nobody wrapped."""
    torch.manual_seed(7)
    loss = model(*make_batch(config))
    loss.backward()
    grads = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in gradients(model).items()}
    return {"loss": loss.detach(), "random state": torch.get_rng_state(), **grads}


def changed_step(mode, attention, wrapper=None, dropout=False):
    config = make_config(SETTINGS[mode], attention=attention, num_layers=LAYERS)
    model = build_unchecked(config)
    if dropout:
        append_dropout(model)
    if wrapper is not None:
        wrap_blocks(model, WRAPPERS[wrapper])
    return step(model, config)


plain_step = functools.cache(functools.partial(changed_step, "none"))


def different(actual, expected):
    assert actual.keys() == expected.keys()
    return [name for name in expected if not torch.equal(actual[name], expected[name])]


DROPOUT = {"ours": False, "torch's dropout inside": True}


@in_turns(
    2, {"wrapper": ["whole block", "reentrant"], "mode": MODES, "attention": ["unfused", "fused"], "dropout": DROPOUT}
)
def test_a_checkpoint_around_blocks_changes_no_bit(wrapper, mode, attention, dropout):
    actual = changed_step(mode, attention, wrapper, dropout)
    assert different(actual, plain_step(attention, dropout=dropout)) == []


@pytest.mark.parametrize("dropout", DROPOUT.values(), ids=DROPOUT)
@pytest.mark.parametrize("attention", ["unfused", "fused"])
@pytest.mark.parametrize("wrapper", ["matmuls saved", "matmuls and our ops saved"])
def test_a_selective_checkpoint_of_torch_s_changes_no_bit(wrapper, attention, dropout):
    actual = changed_step("none", attention, wrapper, dropout)
    assert different(actual, plain_step(attention, dropout=dropout)) == []


@pytest.mark.parametrize("mode", ["none", "softmax dropout"])
def test_what_runs_again_is_what_the_policy_does_not_save(mode):
    """In FLOPs: nothing, the product with v (our op holds it, the policy names aten's alone), or all of forward."""
    config = make_config(SETTINGS[mode], num_layers=LAYERS)

    def flops(wrapper=None):
        model = build_unchecked(config)
        if wrapper is not None:
            wrap_blocks(model, WRAPPERS[wrapper])
        with FlopCounterMode(display=False) as counter:
            step(model, config)
        return counter.get_total_flops()

    s, b, h, f = config.model.seq_length, 2, config.model.hidden_size, config.model.ffn_hidden_size
    with_value = LAYERS * 2 * b * s * s * h
    forward = LAYERS * 2 * b * s * (4 * h * h + 2 * f * h) + 2 * with_value
    assert flops("matmuls and our ops saved") == flops()
    assert flops("matmuls saved") == flops() + with_value
    assert flops("whole block") == flops() + forward


@pytest.mark.parametrize("mode", ["softmax dropout", "all", "uniform 2"])
def test_a_plan_can_be_set_on_wrapped_blocks(mode):
    config = make_config(num_layers=LAYERS)
    model = build_unchecked(config)
    wrap_blocks(model, WRAPPERS["whole block"])
    apply_recompute(model, make_plan(make_config(SETTINGS[mode]).recompute, LAYERS))
    assert different(step(model, config), plain_step("unfused")) == []


# What the compiler saves for backward is decided before it writes code, which takes it most of its time.
WITHOUT_CODE = "aot_eager_decomp_partition"
FOUR_MODES = ["none", "softmax dropout", "all", "uniform 1"]
COMPILED = [
    pytest.param(("unfused", WITHOUT_CODE, FOUR_MODES), id="unfused without code"),
    pytest.param(("fused", "inductor", ["none", "all"]), id="fused"),
    pytest.param(("unfused", "inductor", FOUR_MODES), id="unfused", marks=pytest.mark.soak),
]


@pytest.fixture(params=COMPILED, scope="module")
def steps(request):
    """{mode: (of the model alone, of torch.compile(model))}, each as (bytes saved for backward, step's results)."""
    attention, backend, modes = request.param
    found = {}
    for mode in modes:
        torch._dynamo.reset()
        config = make_config(SETTINGS[mode], attention=attention, num_layers=1)
        alone, inside = build_unchecked(config), build_unchecked(config)
        compiled = torch.compile(inside, backend=backend)
        found[mode] = _bytes_and_step(alone, alone, config), _bytes_and_step(inside, compiled, config)
    return found


def _bytes_and_step(model, run, config):
    storages = {}

    def record(tensor):
        storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = run(*make_batch(config))
    weights = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
    kept = sum(storage.nbytes() for key, storage in storages.items() if key not in weights)
    loss.backward()
    return kept, {"loss": loss.detach(), **gradients(model)}


@pytest.mark.compiles
def test_a_compiler_around_the_model_changes_the_order_of_some_sums_only(steps, relative_error):
    """A compiler fuses the sums over tokens that bias gradients are with what is before them, and splits them anew.

    It does so in every mode, but in other places: regions of ours run as they are. So a mode compiled and none compiled
    differ by no more than that.
    """
    expected = steps["none"][1][1]
    for mode, (_, (_, actual)) in steps.items():
        assert set(different(actual, expected)) <= {name for name in expected if name.endswith(".bias")}, mode
        errors = {name: relative_error(actual[name], expected[name]) for name in different(actual, expected)}
        assert all(error < 1e-6 for error in errors.values()), (mode, errors)


@pytest.mark.compiles
def test_a_compiler_around_the_model_keeps_what_the_model_alone_keeps(steps):
    kept = {mode: (alone, compiled) for mode, ((alone, _), (compiled, _)) in steps.items()}
    assert all(alone == compiled for alone, compiled in kept.values()), kept
    assert sorted(kept, key=kept.get, reverse=True) == list(kept)
    assert len(set(kept.values())) == len(kept)


@pytest.mark.compiles
def test_selective_without_regions_compiles_to_the_same_bits_as_none(steps):
    for mode in {"softmax dropout"} & steps.keys():
        assert different(steps[mode][1][1], steps["none"][1][1]) == []
