"""A ledger among other saved-tensor hooks, compilers and autograd's own check of what is changed in place."""

import contextlib
import functools
import warnings
from collections import Counter

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaselect.ledger import record

ROW = 4 * 8 * 4  # bytes of one activation: 4 samples of 8 fp32 values


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))


def make_input():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1))


def changed_after_forward(x, weight):
    mask = torch.ones(8)
    out = (x @ weight) * mask
    mask.mul_(0.5)
    return out


def changed_result(x, weight):
    out = (x @ weight).exp()
    out.add_(1)
    return out.sin()


def changed_weight(x, weight):
    out = (x @ weight) @ weight
    with torch.no_grad():
        weight.mul_(0.9)
    return out


def changed_argument(x, weight):
    def region(x, mask):
        return (x @ weight) * mask

    mask = torch.ones(8)
    out = checkpoint(region, x, mask, use_reentrant=False)
    mask.mul_(0.5)
    return out


@pytest.mark.parametrize("step", [changed_after_forward, changed_result, changed_weight, changed_argument])
def test_what_autograd_refuses_is_refused_under_a_ledger_too(step):
    messages = []
    for watch in (contextlib.nullcontext, functools.partial(record, nn.Module())):
        weight = torch.eye(8).requires_grad_()
        with watch():
            loss = step(make_input(), weight).sum()
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation") as refused:
            loss.backward()
        messages.append(str(refused.value))
    assert "is at version 1; expected version 0 instead" in messages[0]
    assert "is at version 1; expected version 0 instead" in messages[1]


def test_a_change_before_it_is_kept_is_none():
    weight = torch.eye(8).requires_grad_()
    with record(nn.Module()):
        loss = (make_input() @ weight).mul_(2).exp().sum()
    loss.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("order", ["ledger outside", "ledger inside"])
def test_what_is_kept_on_the_cpu_by_others_hooks_is_counted(order):
    model, x = make_model(), make_input()
    with contextlib.ExitStack() as stack:
        watch, hooks = record(model), save_on_cpu()
        first, second = (watch, hooks) if order == "ledger outside" else (hooks, watch)
        entered = [stack.enter_context(first), stack.enter_context(second)]
        model(x).sum().backward()
    ledger = entered[0] if order == "ledger outside" else entered[1]
    assert ledger.total == 3 * ROW  # the input, the input of GELU and its result
    assert {row.held_by for row in ledger.rows} == {"hook" if order == "ledger outside" else "autograd"}


def test_hooks_that_return_a_number_keep_what_they_were_given():
    model, kept = make_model(), []
    with record(model) as ledger, saved_tensors_hooks(lambda t: kept.append(t) or len(kept) - 1, kept.__getitem__):
        model(make_input()).sum().backward()
    assert ledger.total == 3 * ROW


def test_a_region_inside_others_hooks_keeps_its_input_alone():
    model, x = make_model(), make_input()
    with record(model) as ledger, save_on_cpu():
        loss = checkpoint(model, x, use_reentrant=False).sum()
    loss.backward()
    assert (ledger.total, ledger.recomputed_total) == (ROW, 2 * ROW)


def test_selective_checkpointing_is_not_told_of_a_ledger():
    """From torch 2.14 it warns whoever has saved-tensor hooks around it, and later it will raise."""
    model = make_model()

    def policy(_, op, *__, **___):
        return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with record(model) as ledger:
            loss = checkpoint(model, make_input(), use_reentrant=False, context_fn=contexts).sum()
        loss.backward()
    assert Counter(row.held_by for row in ledger.rows) == {"autograd": 1, "cache": 2}


@pytest.mark.compiles
def test_what_is_compiled_stays_compiled_and_is_counted():
    model = torch.compile(make_model())
    x = make_input()
    model(x)
    with record(model) as ledger:
        loss = model(x).sum()
    assert loss.grad_fn.next_functions[0][0].name() == "CompiledFunctionBackward"
    assert ledger.total == 3 * ROW
    loss.backward()
