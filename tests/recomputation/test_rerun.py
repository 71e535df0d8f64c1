"""Operators that ran again in backward, and their FLOPs: exact for every setting, and for others' checkpoints."""

import functools

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, make_batch, make_config
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaselect.kernels.gelu import gelu
from megaselect.ledger.rerun import RerunMode
from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recomputation.plan import make_plan

WIDTH, TOKENS = 6, 5
OUR_GELU = "megaselect.gelu"
PRODUCT = 2 * TOKENS * WIDTH * WIDTH


def rerun_of(loss):
    with RerunMode() as mode:
        loss.backward()
    return mode.rerun


@pytest.mark.parametrize(("attention", "dropout_p"), [("unfused", 0.1), ("fused", 0.1), ("sdpa", 0.0)])
def test_flops_are_those_that_are_predicted(setting, attention, dropout_p):
    config = make_config(setting, attention=attention, attention_dropout_p=dropout_p)
    rerun = rerun_of(build_unchecked(config)(*make_batch(config)))
    predicted = micro_batch_flops(LayerShape.of(config, 4), make_plan(config.recompute, 4))
    assert rerun.flops == predicted.hardware - predicted.model


AGAIN = {
    "none": {},
    "softmax dropout": {},
    "layernorm": {"layer_norm": 8},
    "gelu": {"gelu": 4},
    "core_attn": {"baddbmm": 4, "softmax_dropout_value": 4},
    "uniform 2": {
        "layer_norm": 4,
        "addmm": 8,
        "baddbmm": 4,
        "softmax_dropout_value": 4,
        "mm": 8,
        "bias_dropout_residual_layer_norm": 4,
        "gelu": 4,
        "bias_dropout_residual": 4,
    },
}


@pytest.mark.parametrize("name", AGAIN)
def test_our_operators_that_run_again(name):
    config = make_config(SETTINGS[name])
    rerun = rerun_of(build_unchecked(config)(*make_batch(config)))
    assert {operator.split(".")[1]: count for operator, count in rerun.calls.items()} == AGAIN[name]


def make_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU())


def make_input():
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_()


class OwnCheckpoint(torch.autograd.Function):
    """As many people write it: the second run under enable_grad, then a backward of its own."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.run = run
        ctx.save_for_backward(x)
        return run(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.run(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


def keep_products(_, op, *__, **___):
    return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


CHECKPOINTS = {
    "reentrant": lambda run, x: checkpoint(run, x, use_reentrant=True),
    "non-reentrant": lambda run, x: checkpoint(run, x, use_reentrant=False),
    "without early stop": lambda run, x: checkpoint(run, x, use_reentrant=False, early_stop=False),
    "selective": lambda run, x: checkpoint(
        run,
        x,
        use_reentrant=False,
        context_fn=functools.partial(create_selective_checkpoint_contexts, keep_products),
    ),
    "a function of one's own": OwnCheckpoint.apply,
    "nested": lambda run, x: checkpoint(
        functools.partial(checkpoint, run, use_reentrant=False), x, use_reentrant=False
    ),
}
# (products, GELUs) that run again. The last GELU keeps its input: without a reentrant backward no more is needed.
SECOND_RUNS = {
    "reentrant": (2, 2),
    "non-reentrant": (2, 1),
    "without early stop": (2, 2),
    "selective": (0, 1),
    "a function of one's own": (2, 2),
    "nested": (2, 1),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_other_kinds(kind):
    products, gelus = SECOND_RUNS[kind]
    loss = CHECKPOINTS[kind](make_layers(), make_input()).sin().sum()
    rerun = rerun_of(loss)
    assert rerun.flops == products * PRODUCT
    assert rerun.flops_by_operator == ({"aten.addmm": products * PRODUCT} if products else {})
    assert dict(rerun.calls) == {"aten.addmm": products, "aten.gelu": gelus} if products else {"aten.gelu": gelus}


def test_a_plain_step_runs_nothing_again():
    with RerunMode() as mode:
        make_layers()(make_input()).sin().sum().backward()
    assert not mode.rerun.calls


class Gelu(nn.Module):
    def forward(self, x):
        return gelu(x)


@pytest.mark.parametrize(("run", "again"), [(lambda x: x.cos().exp(), ["aten.cos", "aten.exp"]), (Gelu(), [OUR_GELU])])
def test_a_function_of_one_s_own_around_plain_code_or_an_operator_that_switches_gradients_off(run, again):
    assert rerun_of(OwnCheckpoint.apply(run, make_input()).sum()).calls == dict.fromkeys(again, 1)


class Scaled(torch.autograd.Function):
    """An ordinary function: what its backward computes is backward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.sin() + x * x.cos())


def test_a_function_s_own_backward_is_no_second_run():
    assert not rerun_of(Scaled.apply(make_input()).sum()).calls


def test_a_function_inside_a_region_runs_again_in_forward_alone():
    loss = checkpoint(lambda x: Scaled.apply(x.cos()).exp(), make_input(), use_reentrant=False).sum()
    assert dict(rerun_of(loss).calls) == {"aten.cos": 1, "aten.sin": 1, "aten.mul": 1, "aten.exp": 1}


def test_hooks_of_parameters_are_no_second_run():
    def update(weight):
        weight.data.sub_(weight.grad)

    layers = make_layers()
    layers[0].weight.register_post_accumulate_grad_hook(update)
    assert not rerun_of(layers(make_input()).sum()).calls
