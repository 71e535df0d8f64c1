"""What megaselect.verify puts back: state of every kind that a model, its batch and its loss function hold."""

import array
import collections
import dataclasses
import functools
import random
import types

import numpy as np
import pytest
import torch
from checkpointed_models import WIDTH, Layer, OwnCheckpoint, Stack, make_input, torch_checkpoint
from torch import nn
from torch.nn import functional as F

import megaselect
from megaselect.errors import VerificationError
from megaselect.trees import map_tensors
from megaselect.verification.tensor_bits import put_into, same_bits

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


def outcomes(report):
    return {check.name: str(check.outcome) for subject in report.subjects for check in subject.checks}


def detail(report, name):
    return next(check.detail for subject in report.subjects for check in subject.checks if check.name == name)


def all_passed(report):
    return set(outcomes(report).values()) == {"passed"}


@dataclasses.dataclass
class Counter:
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    mean: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    step: int = 0


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
    assert said in detail(report, "state")


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
    assert detail(report, "state").startswith("layers.1.log: shape [2] in place of [1]")
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


SPARSE = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
}


class Holding(nn.Module):
    def __init__(self, held, buffer, update=None):
        super().__init__()
        torch.manual_seed(5)
        self.layer, self.update = Layer(), update or (lambda model: None)
        if buffer:
            self.register_buffer("held", held)
        else:
            self.held = held

    def forward(self, x):
        self.update(self)
        dense = self.held.to_dense() if self.held.layout is not torch.strided else self.held
        return RUN(self.layer, x).square().mean() * dense.nan_to_num(1.0).sum()


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_state(layout, buffer):
    def update(model):
        with torch.no_grad():
            model.held.copy_(model.held * 2)

    model = Holding(SPARSE[layout](torch.eye(4)), buffer, update)
    report = megaselect.verify(model, make_input())
    assert all_passed(report), str(report)
    assert torch.equal(model.held.to_dense(), torch.eye(4))


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
def test_an_expanded_state_that_is_not_a_number(buffer):
    held = torch.full((1, 4), NAN).expand(3, 4)
    model = Holding(held, buffer)
    assert all_passed(megaselect.verify(model, make_input()))
    assert model.held is held


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
def test_an_expanded_state_that_changes(buffer):
    base = torch.ones(1, 4)
    model = Holding(base.expand(3, 4), buffer, lambda model: base.add_(1))
    assert all_passed(megaselect.verify(model, make_input()))
    assert base.tolist() == [[1.0] * 4]


def test_buffers_that_forward_replaces_are_the_same_tensors_afterwards():
    def update(model):
        model.held = model.held * 2
        model.seen = model.held
        if not hasattr(model, "made"):
            model.register_buffer("made", torch.ones(1))

    held = torch.ones(4)
    model = Holding(held, True, update)
    model.register_buffer("seen", None)
    report = megaselect.verify(model, make_input())
    assert all_passed(report), str(report)
    assert model.held is held
    assert held.tolist() == [1.0] * 4
    assert model.seen is None
    assert not hasattr(model, "made")


def test_a_lazy_module_is_told_to_run_first():
    model = nn.Sequential(nn.LazyLinear(3), nn.Flatten(0))
    with pytest.raises(VerificationError, match=r"0\.weight has no shape before the model has seen a batch"):
        megaselect.verify(model, make_input(), torch.sum)
    model(make_input())
    assert megaselect.verify(model, make_input(), torch.sum).passed


def test_bits_of_tensors():
    assert same_bits(torch.tensor(NAN), torch.tensor(NAN))
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.int32))
    assert not same_bits(torch.zeros(2), torch.zeros(1, 2))
    assert not same_bits(torch.eye(2).to_sparse(), torch.eye(2).to_sparse_csr())
    complexes = torch.tensor([1 + 2j], dtype=torch.complex128)
    assert same_bits(complexes.conj(), torch.tensor([1 - 2j], dtype=torch.complex128))
    assert not same_bits(complexes, complexes.conj())
    quantized = [torch.quantize_per_tensor(torch.tensor([value]), 0.5, 0, torch.qint8) for value in (1.0, 1.0, 2.0)]
    assert same_bits(*quantized[:2])
    assert not same_bits(*quantized[1:])
    assert same_bits(torch.empty(3, device="meta"), torch.empty(3, device="meta"))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_bits_of_nested_tensors(layout):
    def nested(*lengths):
        return torch.nested.nested_tensor([torch.ones(length, 2) for length in lengths], layout=layout)

    ragged = nested(1, 3)
    assert same_bits(ragged, ragged.clone())
    assert not same_bits(ragged, ragged * 2)
    assert not same_bits(ragged, nested(3, 1))
    assert not same_bits(ragged, nested(1, 3, 1))
    kept = ragged.clone()
    ragged.mul_(2)
    put_into(ragged, kept)
    assert same_bits(ragged, kept)


@pytest.mark.parametrize("layout", SPARSE)
def test_sparse_tensors_with_other_elements_are_put_back(layout):
    before, after = SPARSE[layout](torch.eye(3)), SPARSE[layout](torch.ones(3, 3))
    kept = before.clone()
    put_into(before, after)
    assert torch.equal(before.to_dense(), torch.ones(3, 3))
    put_into(before, kept)
    assert same_bits(before, kept)
    assert torch.equal(before.to_dense(), torch.eye(3))


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
    assert detail(report, "same bits").startswith("loss_fn.head.weight differs in 24 of 24 elements")
    assert detail(report, "state").startswith("loss_fn.calls differs in 1 of 1 elements")
