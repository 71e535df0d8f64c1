"""Tensors of every layout that megaselect.verify compares and puts back."""

import pytest
import torch
from checkpointed_models import Layer, make_input, torch_checkpoint
from reports import all_passed
from torch import nn

import megaselect
from megaselect.errors import VerificationError
from megaselect.tensor_bits import put_into, same_bits

RUN = torch_checkpoint(use_reentrant=False)
NAN = float("nan")


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
