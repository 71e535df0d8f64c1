"""The gelu op has torch's bits, keeps its input alone, and is opaque to a compiler."""

import pytest
import torch
from torch.nn import functional

from megaselect.kernels.gelu import gelu

SHAPES = [(1,), (17, 3, 33), (8, 2, 256), (0, 4)]
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
op, backward_op = torch.ops.megaselect.gelu, torch.ops.megaselect.gelu_backward


def torchs(x):
    return functional.gelu(x, approximate="tanh")


def inputs(shape, dtype):
    """(x, gradient of the output), drawn afresh; the tails lie in the range where gelu saturates."""
    return (3 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)


def run(function, x, grad):
    """(out, grad of x) with a leaf of x's strides."""
    leaf = x.detach().requires_grad_()
    out = function(leaf)
    out.backward(grad)
    return out.detach(), leaf.grad


def assert_same_bits(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_of_torch(shape, dtype):
    x, grad = inputs(shape, dtype)
    assert_same_bits(run(gelu, x, grad), run(torchs, x, grad))


@every_dtype
def test_strided_input_and_gradient(dtype):
    x, grad = (tensor.transpose(0, 2) for tensor in inputs((17, 3, 33), dtype))
    assert not x.is_contiguous()
    assert_same_bits(run(gelu, x, grad), run(torchs, x, grad))
    mixed = x, grad.contiguous()
    assert_same_bits(run(gelu, *mixed), run(torchs, *mixed))
    row = torch.randn(33, 1).to(dtype).expand(33, 17)
    assert_same_bits(run(gelu, row, grad[:, 0]), run(torchs, row, grad[:, 0]))


@every_dtype
def test_its_input_alone_is_kept(dtype, record_saved):
    x, _ = inputs((17, 3, 33), dtype)
    with record_saved() as saved:
        gelu(x.requires_grad_())
    assert [(tensor.data_ptr(), tensor.nbytes) for tensor in saved] == [(x.data_ptr(), x.nbytes)]
    with record_saved() as saved, torch.no_grad():
        assert not gelu(x).requires_grad
    assert saved == []


def test_gradcheck():
    x, _ = inputs((4, 5), torch.float64)
    assert torch.autograd.gradcheck(gelu, [x.requires_grad_()])


@every_dtype
@pytest.mark.parametrize("strided", [False, True])
def test_opcheck(dtype, strided):
    x, grad = inputs((3, 2, 5), dtype)
    if strided:
        x = x.transpose(0, 2)
        grad = grad.transpose(0, 2).contiguous()
    torch.library.opcheck(backward_op.default, (grad, x))
    torch.library.opcheck(op.default, (x.requires_grad_(),))


@every_dtype
def test_compiled_gives_the_same_bits(dtype):
    x, grad = inputs((17, 3, 33), dtype)
    compiled = torch.compile(gelu, fullgraph=True, backend="aot_eager")
    assert_same_bits(run(compiled, x, grad), run(gelu, x, grad))
