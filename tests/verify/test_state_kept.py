"""What megaselect.verify puts back: state of every kind that a model holds."""

import array
import collections
import dataclasses
import random
import types

import numpy as np
import pytest
import torch
from checkpointed_models import Layer, Stack, make_input, torch_checkpoint
from records import Counter, Frozen, Slotted
from reports import all_passed, details, outcomes
from torch import nn
from torch.nn import functional as F

import megaselect

RUN = torch_checkpoint(use_reentrant=False)
NAN = float("nan")


class Stateful(nn.Module):
    """Holds `state`, and calls `update(state)` in forward outside what runs again, or inside it."""

    def __init__(self, state, update, inside=False):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.state, self.update, self.inside = Layer(), state, update, inside

    def forward(self, x):
        scale = 1.0 if self.inside else float(self.update(self.state) or 1.0)
        return RUN(self.region, x).square().mean() * scale

    def region(self, x):
        if self.inside:
            self.update(self.state)
        return self.layer(x)


def add_to_attribute(state):
    state.step += 1
    return state.step


def add_to_first(state):
    state[0] += 1
    return state[0]


def add_to_dictionary(state):
    state["step"] += 1
    return state["step"]


def append_one(state):
    state.append(float(len(state)))
    return len(state)


def add_to_set(state):
    state.add(len(state))
    return len(state)


def add_to_mean(state):
    return state.mean.add_(1)[0]


# name -> (a new state, what changes it, what a second update is called, what is in the state)
KINDS = {
    "tuple of tensors": (
        lambda: (torch.zeros(2),),
        lambda s: s[0].add_(1)[0],
        "state[0] differs",
        lambda s: s[0].tolist(),
    ),
    "numpy array": (lambda: np.zeros(2), add_to_first, "state differs", np.ndarray.tolist),
    "numpy integers": (lambda: np.zeros(2, dtype=int), add_to_first, "state differs", np.ndarray.tolist),
    "deque": (lambda: collections.deque([1.0], maxlen=9), append_one, "len(state) differs", list),
    "set": (lambda: {0}, add_to_set, "len(state) differs", sorted),
    "dataclass": (Counter, add_to_attribute, "state.step differs", dataclasses.asdict),
    "slotted dataclass": (Slotted, add_to_attribute, "state.step differs", dataclasses.asdict),
    "frozen dataclass": (lambda: Frozen(torch.zeros(2)), add_to_mean, "state.mean differs", lambda s: s.mean.tolist()),
    "namespace": (lambda: types.SimpleNamespace(step=0), add_to_attribute, "state.step differs", vars),
    "dictionary with a function": (
        lambda: {"act": F.gelu, "step": 0},
        add_to_dictionary,
        "state['step'] differs",
        lambda s: s["step"],
    ),
    "list with a module": (lambda: [0, nn.Identity()], add_to_first, "state[0] differs", lambda s: s[0]),
    "bytearray": (lambda: bytearray(2), add_to_first, "state differs", list),
    "array": (lambda: array.array("i", [0, 0]), add_to_first, "state differs", list),
    "nested": (lambda: {"in": ([Counter()],)}, lambda s: add_to_attribute(s["in"][0][0]), "step differs", str),
}


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_each_kind_is_put_back(kind):
    make, update, _, content = KINDS[kind]
    state, before = make(), content(make())
    model = Stateful(state, update)
    report = megaselect.verify(model, make_input())
    assert all_passed(report), str(report)
    assert model.state is state
    assert content(state) == before


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_each_kind_that_a_second_run_updates_again_is_a_failure(kind):
    make, update, said, _ = KINDS[kind]
    report = megaselect.verify(Stateful(make(), update, inside=True), make_input())
    assert outcomes(report)["state"] == "failed"
    assert said in details(report)["state"]


def test_text_that_a_second_run_adds_to_is_a_failure():
    class Logs(Layer):
        log = ""

        def forward(self, x):
            self.log += "x"
            return super().forward(x)

    model = Stack(RUN)
    model.layers[1] = Logs()
    model.layers[1].log = ""
    report = megaselect.verify(model, make_input())
    assert details(report)["state"].startswith("layers.1.log: shape [2] in place of [1]")
    assert model.layers[1].log == ""


def test_state_that_holds_itself():
    state = [0]
    state.append(state)
    report = megaselect.verify(Stateful(state, add_to_first), make_input())
    assert all_passed(report), str(report)
    assert state[0] == 0
    assert state[1] is state


GENERATORS = {
    "numpy": (lambda: np.random.default_rng(0), lambda generator: generator.random()),
    "numpy, old": (lambda: np.random.RandomState(0), lambda generator: generator.rand()),
    "python": (lambda: random.Random(0), lambda generator: generator.random()),
    "torch": (lambda: torch.Generator().manual_seed(0), lambda generator: torch.rand((), generator=generator)),
}


WITHIN = {
    "dict": (lambda held: {"rng": held, "act": F.gelu}, lambda state: state["rng"]),
    "list": (lambda held: [(held,)], lambda state: state[0][0]),
    "record": (Frozen, lambda state: state.mean),
}


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("container", WITHIN)
def test_generators_in_containers_are_put_back(kind, container):
    make, draw = GENERATORS[kind]
    put, get = WITHIN[container]
    state = put(make())
    report = megaselect.verify(Stateful(state, lambda state: draw(get(state)) + 1), make_input())
    assert all_passed(report), str(report)
    assert float(draw(get(state))) == float(draw(make()))
