"""Layer normalisation with fp32 statistics on a CPU, against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from megaselect.kernels.layer_norm import layer_norm

EPSILON = 1e-5
op = torch.ops.megaselect.layer_norm
backward_op = torch.ops.megaselect.layer_norm_backward


def make_inputs(shape, dtype):
    """[x, weight, bias] and the gradient of the output."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, grad = 2 * torch.randn(shape, generator=generator) + 0.5, torch.randn(shape, generator=generator)
    weight, bias = 1 + 0.1 * torch.randn(shape[-1], generator=generator), torch.randn(shape[-1], generator=generator)
    return [tensor.to(dtype) for tensor in (x, weight, bias)], grad.to(dtype)


def run(function, inputs, grad, dtype=None):
    """(out, grad of x, of weight, of bias) with the inputs cast to `dtype`."""
    leaves = [tensor.to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in inputs]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def ours(x, weight, bias):
    return layer_norm(x, weight, bias, EPSILON)


def torchs(x, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPSILON)


@pytest.mark.parametrize("shape", [(17, 3, 33), (5, 64), (1, 1, 8), (7, 2, 192)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_types_give_the_bits_of_torch(shape, dtype):
    inputs, grad = make_inputs(shape, dtype)
    for got, wanted in zip(run(ours, inputs, grad), run(torchs, inputs, grad), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 4, 192), (17, 3, 33), (256, 2, 64)], ids=str)
def test_16_bit_errors_are_no_larger_than_those_of_torch(shape, dtype, relative_error):
    inputs, grad = make_inputs(shape, dtype)
    exact = run(torchs, inputs, grad, torch.float64)
    got, plain = run(ours, inputs, grad), run(torchs, inputs, grad)
    rounding = torch.finfo(dtype).eps / 2
    for mine, theirs, true in zip(got, plain, exact, strict=True):
        assert mine.dtype == dtype
        assert relative_error(mine, true) <= (1 + 1e-6) * relative_error(theirs, true)  # ties may round either way
        assert relative_error(mine, true) <= rounding


def test_16_bit_results_are_those_of_fp32_rounded_once():
    inputs, grad = make_inputs((17, 3, 33), torch.bfloat16)
    wide = run(torchs, inputs, grad, torch.float32)
    for got, wanted in zip(run(ours, inputs, grad), wide, strict=True):
        assert torch.equal(got, wanted.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("dtype", "statistics"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32)],
)
def test_what_is_kept_for_backward(dtype, statistics, record_saved):
    inputs, _ = make_inputs((17, 3, 33), dtype)
    with record_saved() as saved:
        ours(*(tensor.requires_grad_() for tensor in inputs))
    kept = [(tuple(tensor.shape), tensor.dtype) for tensor in saved]
    assert kept == [((17, 3, 33), dtype), ((33,), dtype), ((33,), dtype), *[((17, 3, 1), statistics)] * 2]
    wide = inputs[0].detach().double()
    torch.testing.assert_close(saved[3].double(), wide.mean(-1, keepdim=True), rtol=1e-5, atol=1e-6)
    deviation = (wide.var(-1, unbiased=False, keepdim=True) + EPSILON).sqrt()
    torch.testing.assert_close(saved[4].double(), 1 / deviation, rtol=1e-5, atol=0)


def test_nothing_is_kept_without_gradients(record_saved):
    inputs, _ = make_inputs((17, 3, 33), torch.bfloat16)
    with record_saved() as saved, torch.no_grad():
        ours(*(tensor.requires_grad_() for tensor in inputs))
    assert saved == []


def test_a_strided_gradient():
    inputs, grad = make_inputs((17, 3, 33), torch.float32)
    strided = grad.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    for got, wanted in zip(run(ours, inputs, strided), run(ours, inputs, grad), strict=True):
        assert torch.equal(got, wanted)


def test_gradcheck():
    inputs, _ = make_inputs((3, 2, 5), torch.float64)
    assert torch.autograd.gradcheck(ours, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    inputs, grad = make_inputs((3, 2, 5), dtype)
    _, mean, rstd = op(*inputs, EPSILON)
    torch.library.opcheck(backward_op.default, (grad, *inputs, mean, rstd))
    torch.library.opcheck(op.default, (*(tensor.requires_grad_() for tensor in inputs), EPSILON))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_gives_the_same_bits(dtype):
    inputs, grad = make_inputs((17, 3, 33), dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(run(compiled, inputs, grad), run(ours, inputs, grad), strict=True):
        assert torch.equal(got, wanted)
