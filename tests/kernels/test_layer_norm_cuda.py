"""The layernorm kernels, alone and after dropout, on a real GPU: accuracy, equal bits, repeatability, large sizes."""

import os

import pytest
import torch
from on_cuda import fresh_inputs, poison  # noqa: F401  the fixture serves every test here
from torch.nn import functional

from megaselect.kernels import bias_dropout_residual_layer_norm_triton as fused
from megaselect.kernels import bias_dropout_residual_triton, layer_norm_triton
from megaselect.kernels.bias_dropout_residual_layer_norm import Pair, bias_dropout_residual_layer_norm
from megaselect.kernels.dropout_mask import Plane, keep_hidden

pytestmark = pytest.mark.cuda

EPSILON, SITE, RUNS = 1e-5, 11 * 4096 + 4000, 250
PAIR = Pair(bias_dropout_residual_triton, layer_norm_triton)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"]
)
SHAPES = [(1, 1, 1), (17, 2, 127), (300, 3, 768), (1000, 1, 1000), (257, 2, 4097), (512, 4, 4096)]
WIDE = [(33, 2, 8192), (17, 1, 12288), (9, 2, 20001), (5, 1, 65536)]
every_shape = pytest.mark.parametrize("shape", SHAPES + WIDE, ids=str)


class Case:
    """Random inputs of the kernels and their mask."""

    def __init__(self, rows, batch, columns, dtype, threshold=26):
        x, residual, *self.grads = (torch.randn(rows, batch, columns, device="cuda").to(dtype) for _ in range(4))
        bias, ln_bias = (torch.randn(columns, device="cuda").to(dtype) for _ in range(2))
        weight = (1 + 0.1 * torch.randn(columns, device="cuda")).to(dtype)
        self.inputs, self.parameters = (x, bias, residual, weight, ln_bias), (weight, ln_bias)
        self.samples = torch.randint(0, 2**40, (batch,), device="cuda")
        self.plane = Plane(int.from_bytes(os.urandom(8), "little"), SITE, threshold, 5, 64)
        self.mask = keep_hidden(self.samples.cpu(), self.plane, rows, columns).cuda()

    def normalise(self):
        """(out, gradients of x, weight and bias, mean, 1/standard deviation) of the layernorm kernels on x."""
        x, grad = self.inputs[0], self.grads[0]
        out, mean, rstd = layer_norm_triton.forward(x, *self.parameters, EPSILON)
        return out, *layer_norm_triton.backward(grad, x, *self.parameters, mean, rstd), mean, rstd

    def normalise_in(self, dtype):
        """The first four of torch in this dtype."""
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (self.inputs[0], *self.parameters)]
        out = functional.layer_norm(leaves[0], leaves[0].shape[-1:], *leaves[1:], EPSILON)
        out.backward(self.grads[0].to(dtype))
        return out.detach(), *(leaf.grad for leaf in leaves)

    def run(self, kernels, save_mask, direct=True):
        """All that forward and backward of dropout and layernorm return; the mask is the fifth."""
        made = kernels.forward(*self.inputs, self.samples, self.plane, EPSILON, save_mask)
        out, _, *kept = made
        arguments = (out, *kept, self.samples, *self.parameters, self.plane)
        return *made, *kernels.backward(self.grads[0] if direct else None, self.grads[1], *arguments)


def assert_same_bits(got, wanted):
    for k, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert not one.isnan().any(), k
        assert torch.equal(one, other), k


@every_dtype
@every_shape
def test_layernorm_is_as_accurate_as_torch(shape, dtype, relative_error):
    case = Case(*shape, dtype)
    poison(*case.inputs)
    exact, same_dtype = case.normalise_in(torch.float64), case.normalise_in(dtype)
    for k, (got, plain, true) in enumerate(zip(case.normalise(), same_dtype, exact, strict=False)):
        floor = torch.finfo(dtype).eps / 4
        if true.norm() > 1e-3 * true.numel() ** 0.5:  # of a row of one channel some are 0
            assert relative_error(got, true) <= 2 * relative_error(plain, true) + floor, k


@every_dtype
@every_shape
@pytest.mark.parametrize("threshold", [0, 26, 128])
def test_one_op_gives_the_bits_of_two(shape, dtype, threshold):
    case = Case(*shape, dtype, threshold)
    assert fused.kernels_for(case.plane) is fused.Fused
    poison(*case.inputs, case.mask)
    saved = case.run(fused.Fused, threshold > 0)
    assert_same_bits(saved, case.run(PAIR, threshold > 0))
    assert_same_bits(case.run(fused.Fused, False, direct=False), case.run(PAIR, False, direct=False))
    if threshold:
        assert torch.equal(saved[4], case.mask)
        poison(*case.inputs)
        recomputed = case.run(fused.Fused, False)
        assert_same_bits(recomputed[:4] + recomputed[5:], saved[:4] + saved[5:])


@every_dtype
def test_gradients_of_an_unaligned_tensor(dtype):
    """A view that begins between two 16-byte units compiles a kernel of its own: it must add in the same order."""
    case = Case(64, 2, 1024, dtype)
    aligned = case.run(fused.Fused, False)
    for k in (0, 2):
        tensor = case.inputs[k]
        shifted = torch.empty(tensor.numel() + 1, dtype=dtype, device="cuda")[1:].view_as(tensor).copy_(tensor)
        case.inputs = (*case.inputs[:k], shifted, *case.inputs[k + 1 :])
        assert_same_bits(case.run(fused.Fused, False), aligned)


@every_dtype
def test_repeats_bitwise(dtype):
    case = Case(1024, 2, 1024, dtype)
    first, alone = case.run(fused.Fused, False), case.normalise()
    for _ in range(RUNS):
        assert_same_bits(case.run(fused.Fused, False), first)
        assert_same_bits(case.normalise(), alone)


@every_dtype
def test_through_autograd(dtype):
    case = Case(128, 2, 1024, dtype)
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    outputs = bias_dropout_residual_layer_norm(*leaves, case.samples, case.plane, epsilon=EPSILON, save_mask=False)
    torch.autograd.backward(outputs, case.grads)
    out, normed, _, _, _, grad_x, grad_residual, grad_weight, grad_ln_bias = case.run(fused.Fused, False)
    wanted = (out, normed, grad_x, grad_x.sum((0, 1)), grad_residual, grad_weight, grad_ln_bias)
    assert_same_bits((*outputs, *(leaf.grad for leaf in leaves)), wanted)


def test_above_2_to_the_31_elements():
    gib_needed = 40
    if torch.cuda.mem_get_info()[0] < gib_needed * 2**30:
        pytest.skip(f"needs {gib_needed} GiB of free GPU memory")
    rows, columns = 2**19 + 64, 4096
    x = torch.randn(rows, 1, columns, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    vectors = [torch.randn(columns, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    samples, plane = torch.tensor([2**33 + 5], device="cuda"), Plane(1234, SITE, 26)
    made = fused.Fused.forward(x, vectors[0], x, *vectors[1:], samples, plane, EPSILON, False)
    _, total, *_ = fused.Fused.backward(None, x, made[0], *made[2:], samples, *vectors[1:], plane)
    last = slice(rows - 64, rows)
    moved = plane._replace(row_offset=rows - 64)
    part = fused.Fused.forward(x[last], vectors[0], x[last], *vectors[1:], samples, moved, EPSILON, False)
    assert_same_bits(part[:4], [tensor[last] for tensor in made[:4]])
    _, part_total, *_ = fused.Fused.backward(None, x[last], part[0], *part[2:], samples, *vectors[1:], moved)
    assert torch.equal(part_total, total[last])
