"""The batch and the loss function's modules: megaselect.verify gives each run its own, and puts them back."""

import collections
import functools
import types

import numpy as np
import pytest
import torch
from checkpointed_models import WIDTH, Layer, OwnCheckpoint, Stack, make_input, torch_checkpoint
from records import Frozen, Slotted
from reports import all_passed, details, outcomes
from torch import nn

import megaselect
from megaselect.trees import map_tensors

RUN = torch_checkpoint(use_reentrant=False)
NAN = float("nan")


class ChangesItsBatch(nn.Module):
    def __init__(self, change):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.change = Layer(), change

    def forward(self, batch):
        return RUN(self.layer, self.change(batch)).square().mean()


def halve(x):
    return x.mul_(0.5)


def pop(batch):
    return batch.pop("x")


def halve_record(batch):
    return batch["record"].mean.mul_(0.5)


def halve_array(batch):
    batch["array"] *= 0.5
    return batch["x"] * float(batch["array"][0])


CHANGED = {
    "tensor": (halve, lambda: make_input()),
    "mapping": (pop, lambda: ({"x": make_input()},)),
    "ordered mapping": (pop, lambda: (collections.OrderedDict(x=make_input()),)),
    "defaultdict": (pop, lambda: (collections.defaultdict(list, x=make_input()),)),
    "list": (list.pop, lambda: ([make_input()],)),
    "record": (halve_record, lambda: ({"record": Frozen(make_input())},)),
    "numpy array": (halve_array, lambda: ({"x": make_input(), "array": np.ones(2)},)),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_batch_that_the_model_changes(kind):
    change, make = CHANGED[kind]
    batch = make()
    report = megaselect.verify(ChangesItsBatch(change), batch)
    assert all_passed(report), str(report)
    assert repr(batch) == repr(make())


def test_a_batch_with_a_graph_is_one_of_leaves():
    encoder = nn.Linear(WIDTH, WIDTH)
    encoded = encoder(make_input())
    report = megaselect.verify(Stack(RUN), encoded)
    assert all_passed(report), str(report)
    assert encoder.weight.grad is None
    encoded.sum().backward()
    assert encoder.weight.grad.shape == (WIDTH, WIDTH)


def test_what_is_twice_in_a_batch_is_one_tensor_in_each_run():
    class Adds(nn.Module):
        def forward(self, x, y):
            x.add_(1)
            assert x is y
            return y.sum()

    x = torch.zeros(2)
    assert "failed" not in outcomes(megaselect.verify(Adds(), (x, x))).values()
    assert x.tolist() == [0.0, 0.0]


def test_a_record_in_the_batch_of_a_function_of_one_s_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.layer = Layer()

        def forward(self, record):
            return OwnCheckpoint.apply(self.layer, record.mean, *self.layer.parameters()).square().mean()

    report = megaselect.verify(Own(), (Frozen(make_input().requires_grad_()),))
    assert outcomes(report)["differences"] == "passed", str(report)


def test_tensors_are_mapped_wherever_they_are_found():
    tree = {
        "record": Frozen(torch.zeros(1)),
        "slots": Slotted(torch.zeros(1)),
        "kinds": collections.defaultdict(list, x=torch.zeros(1)),
        "frozen": types.MappingProxyType({"x": (torch.zeros(1), "text")}),
    }
    mapped = map_tensors(lambda tensor: tensor + 1, tree)
    assert mapped["record"].mean.item() == mapped["slots"].step.item() == mapped["kinds"]["x"].item() == 1
    assert mapped["kinds"]["missing"] == []
    assert mapped["frozen"]["x"][0].item() == 1
    assert mapped["frozen"]["x"][1] == "text"
    assert tree["record"].mean.item() == tree["kinds"]["x"].item() == 0
    assert "missing" not in tree["kinds"]


class Criterion(nn.Module):
    """A loss with weights, a buffer and a counter, which the loss depends on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.head, self.calls = nn.Linear(WIDTH, 3), 0
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, output, scale=1.0):
        self.calls += 1
        out = self.head(output)
        self.mean.add_(out.detach().mean(0))
        return (out - self.mean.clone()).square().mean() * self.calls * scale


class Body(Stack):
    """Has no loss of its own."""

    def forward(self, x):
        for layer in self.layers:
            x = RUN(layer, x)
        return x


LOSSES = {
    "module": lambda criterion: criterion,
    "bound method": lambda criterion: criterion.forward,
    "partial": lambda criterion: functools.partial(criterion, scale=2.0),
    "closure": lambda criterion: lambda output: criterion(output) * 2,
}


@pytest.mark.parametrize("form", LOSSES)
def test_a_loss_function_with_weights_and_state_is_put_back(form):
    criterion = Criterion()
    gradient = torch.ones(3)
    criterion.head.bias.grad = gradient
    report = megaselect.verify(Body(RUN, embed=False), make_input(), LOSSES[form](criterion))
    assert all_passed(report), str(report)
    assert criterion.calls == 0
    assert criterion.mean.tolist() == [0.0] * 3
    assert criterion.head.weight.grad is None
    assert criterion.head.bias.grad is gradient
    assert gradient.tolist() == [1.0] * 3


def test_a_loss_function_s_second_update_and_wrong_gradient_are_named():
    class Twice(Criterion):
        def forward(self, output):
            return RUN(self.region, output)

        def region(self, output):
            self.calls += 1
            return self.head(output * self.calls).square().mean()

    report = megaselect.verify(Body(RUN, layers=0, embed=False), make_input(), Twice())
    assert details(report)["same bits"].startswith("loss_fn.head.weight differs in 24 of 24 elements")
    assert details(report)["state"].startswith("loss_fn.calls differs in 1 of 1 elements")
