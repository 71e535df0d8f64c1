"""Layer normalisation with fp32 statistics on a CPU: against torch's own, what is kept, and how torch sees the op."""

import pytest
import torch
import torch.nn.functional as F

from megaselect.kernels.layer_norm import layer_norm

EPSILON = 1e-5
either_backend = pytest.mark.parametrize(
    "backend",
    ["torch", pytest.param("triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted"))],
)
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


def ours(x, weight, bias, backend="auto"):
    return layer_norm(x, weight, bias, EPSILON, backend)


def interpreted(x, weight, bias):
    return ours(x, weight, bias, "triton")


def on(backend):
    """The op on this backend."""
    return {"torch": ours, "triton": interpreted}[backend]


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


@either_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_kept_for_backward(dtype, backend, record_saved):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("the interpreter has no bf16")
    inputs, _ = make_inputs((17, 3, 33), dtype)
    with record_saved() as saved:
        on(backend)(*(tensor.requires_grad_() for tensor in inputs))
    kept = [(tuple(tensor.shape), tensor.dtype) for tensor in saved]
    assert kept == [((17, 3, 33), dtype), ((33,), dtype), ((33,), dtype), *[((17, 3, 1), torch.float32)] * 2]
    assert saved[0].data_ptr() == inputs[0].data_ptr()
    wide = inputs[0].detach().double()
    torch.testing.assert_close(saved[3].double(), wide.mean(-1, keepdim=True), rtol=1e-5, atol=1e-6)
    deviation = (wide.var(-1, unbiased=False, keepdim=True) + EPSILON).sqrt()
    torch.testing.assert_close(saved[4].double(), 1 / deviation, rtol=1e-5, atol=0)


def test_nothing_is_kept_without_gradients(record_saved):
    inputs, _ = make_inputs((17, 3, 33), torch.bfloat16)
    with record_saved() as saved, torch.no_grad():
        ours(*(tensor.requires_grad_() for tensor in inputs))
    assert saved == []


@either_backend
def test_strided_inputs_and_gradient(backend):
    (x, weight, bias), grad = make_inputs((17, 3, 33), torch.float32)
    wanted = run(on(backend), (x, weight, bias), grad)
    strided_x, strided_grad = (tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in (x, grad))
    strided_weight, strided_bias = torch.stack([weight, bias], 1).unbind(1)
    strided = (strided_x, strided_weight, strided_bias)
    assert not any(tensor.is_contiguous() for tensor in (*strided, strided_grad))
    for got, expected in zip(run(on(backend), strided, strided_grad), wanted, strict=True):
        assert torch.equal(got, expected)


def test_an_unknown_backend_is_an_error():
    inputs, _ = make_inputs((2, 4), torch.float32)
    with pytest.raises(ValueError, match="kernel backend 'cudnn' is not one of auto, triton, numba, torch"):
        ours(*inputs, backend="cudnn")


def test_gradcheck():
    inputs, _ = make_inputs((3, 2, 5), torch.float64)
    assert torch.autograd.gradcheck(ours, [tensor.requires_grad_() for tensor in inputs])


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        *((dtype, "torch") for dtype in (torch.float64, torch.float32, torch.bfloat16)),
        pytest.param(torch.float32, "triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="no CPU")),
    ],
    ids=str,
)
@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(dtype, backend, strided):
    (x, weight, bias), grad = make_inputs((3, 2, 5), dtype)
    x = x.transpose(0, 1) if strided else x
    grad = grad.transpose(0, 1) if strided else grad
    _, mean, rstd = op(x, weight, bias, EPSILON, backend)
    torch.library.opcheck(backward_op.default, (grad, x, weight, bias, mean, rstd, backend))
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    torch.library.opcheck(op.default, (*leaves, EPSILON, backend))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_gives_the_same_bits(dtype):
    inputs, grad = make_inputs((17, 3, 33), dtype)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(run(compiled, inputs, grad), run(ours, inputs, grad), strict=True):
        assert torch.equal(got, wanted)
