"""The fused kernels give the bits of the two ops' kernels, in Triton's interpreter where there is no GPU."""

import os

import pytest
import torch
from mask_reference import dropped
from turns import in_turns

from megaselect.kernels import bias_dropout_residual_layer_norm_triton as fused
from megaselect.kernels import bias_dropout_residual_triton, layer_norm_triton
from megaselect.kernels.bias_dropout_residual_layer_norm import Pair
from megaselect.kernels.dropout_mask import Plane

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED, SITE, EPSILON = 0x8000000180000001, 2**31 - 1, 1e-5
HALF_THE_WORDS = 48  # a multiple of 16: half the random words, which are half of the interpreter's time
PAIR = Pair(bias_dropout_residual_triton, layer_norm_triton)
SHAPES = {  # [s, b, h], row and column offset
    "one-element": ((1, 1, 1), (0, 0)),
    "narrow": ((9, 2, 17), (0, 0)),
    "offsets": ((5, 2, 100), (9, 128)),
    "several-tiles": ((18, 1, 192), (3, 64)),
    "wide": ((2, 1, 1000), (0, 0)),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@pytest.fixture
def chunked(monkeypatch):
    """Rows come in chunks from 128 columns on."""
    monkeypatch.setattr(layer_norm_triton, "MAX_WARPS", 0)
    monkeypatch.setattr(layer_norm_triton, "CHUNK_WARPS", 2)


@pytest.fixture
def poisoned(monkeypatch):
    """torch's allocations of memory that is to be written hold NaN (1 in a mask)."""

    def poison(make, *arguments, **options):
        tensor = make(*arguments, **options)
        return tensor.fill_(torch.nan if tensor.is_floating_point() else 1)

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        make = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, make=make, **k: poison(make, *a, **k))


class Case:
    def __init__(self, shape, offsets, dtype, threshold):
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
        x, residual, *self.grads = (torch.randn(shape).to(DEVICE, dtype) for _ in range(4))
        bias, weight, ln_bias = (torch.randn(shape[-1]).to(DEVICE, dtype) for _ in range(3))
        self.inputs, self.parameters = (x, bias, residual, weight, ln_bias), (weight, ln_bias)
        numbers = [2**32 + 4, 2**32 - 1][: shape[1]]
        self.samples, self.plane = torch.tensor(numbers, device=DEVICE), Plane(SEED, SITE, threshold, *offsets)
        drop = [dropped(SEED, sample, SITE, threshold, shape[0], shape[2], *offsets) for sample in numbers]
        self.keep = ~torch.stack([torch.from_numpy(mask) for mask in drop], dim=1).to(DEVICE)

    def run(self, kernels, save_mask, direct=True):
        """All that forward and backward return: out, normed, mean, rstd, mask, and the four gradients."""
        made = kernels.forward(*self.inputs, self.samples, self.plane, EPSILON, save_mask)
        out, _, *kept = made
        grad_out, grad_normed = self.grads
        arguments = (out, *kept, self.samples, *self.parameters, self.plane)
        return *made, *kernels.backward(grad_out if direct else None, grad_normed, *arguments)


def assert_same_bits(got, wanted):
    for k, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert one.dtype == other.dtype, k
        assert not one.isnan().any(), k
        assert torch.equal(one, other), k


@in_turns(2, {("shape", "offsets"): SHAPES, "threshold": [0, HALF_THE_WORDS], "dtype": DTYPES})
def test_the_bits_of_the_two_ops(shape, offsets, threshold, dtype, poisoned):
    case = Case(shape, offsets, dtype, threshold)
    assert fused.kernels_for(case.plane) is fused.Fused
    saved = case.run(fused.Fused, threshold > 0)
    assert_same_bits(saved, case.run(PAIR, threshold > 0))
    if threshold:
        assert torch.equal(saved[4], -case.keep.to(torch.int8))
        recomputed = case.run(fused.Fused, False)
        assert recomputed[4].numel() == 0
        assert_same_bits(recomputed[:4] + recomputed[5:], saved[:4] + saved[5:])


@pytest.mark.parametrize("save_mask", [True, False])
def test_rows_in_chunks(save_mask, chunked, poisoned):
    case = Case((2, 1, 650), (9, 64), torch.float16, HALF_THE_WORDS)
    options = layer_norm_triton.launch_options(650, 2, "forward")
    assert not options["WHOLE"]
    assert 2 * options["BLOCK_N"] < 650
    assert_same_bits(case.run(fused.Fused, save_mask), case.run(PAIR, save_mask))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("threshold", [0, HALF_THE_WORDS, 128])
def test_without_a_gradient_of_out(threshold, dtype, poisoned):
    case = Case((5, 2, 100), (0, 0), dtype, threshold)
    assert_same_bits(case.run(fused.Fused, False, direct=False), case.run(PAIR, False, direct=False))


def test_columns_off_the_grid_are_left_to_the_two_ops():
    case = Case((3, 1, 100), (0, 13), torch.float32, 26)
    kernels = fused.kernels_for(case.plane)
    assert isinstance(kernels, Pair)
    out, *_, mask = kernels.forward(*case.inputs, case.samples, case.plane, EPSILON, True)
    assert torch.equal(mask, -case.keep.to(torch.int8))
    x, bias, residual, *_ = case.inputs
    assert torch.equal(out, ((x + bias) * (256 / 230)).where(case.keep, 0.0) + residual)


def test_without_rows():
    case = Case((0, 2, 64), (0, 0), torch.float32, 0)
    *_, grad_weight, grad_ln_bias = case.run(fused.Fused, False)
    assert not grad_weight.any()
    assert not grad_ln_bias.any()
