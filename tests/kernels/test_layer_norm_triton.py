"""The layernorm kernels against fp64, in Triton's interpreter where there is no GPU."""

import os

import pytest
import torch
from torch.nn import functional

from megaselect.kernels import layer_norm_triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = 1e-5
SHAPES = [(1, 1), (40, 17), (9, 100), (130, 192), (3, 1000), (2, 4097), (0, 8)]
either_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


@pytest.fixture(autouse=True)
def fresh_inputs(record_property):
    seed = int.from_bytes(os.urandom(4), "little")
    record_property("seed", seed)
    print(f"inputs drawn with torch.manual_seed({seed})")
    torch.manual_seed(seed)


@pytest.fixture
def chunked(monkeypatch):
    """Rows of more than 128 or 256 columns come in chunks, so that few columns take that path too."""
    monkeypatch.setattr(kernels, "MAX_WARPS", 0)
    monkeypatch.setattr(kernels, "CHUNK_WARPS", 2)


@pytest.fixture
def poisoned(monkeypatch):
    """torch's allocations of memory that is to be written hold NaN."""
    for name in ("empty", "empty_like"):
        make = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, make=make, **k: make(*a, **k).fill_(torch.nan))
    make_new = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: make_new(*a, **k).fill_(torch.nan))


def inputs(shape, dtype, mean=0.5):
    """(x, weight, bias, gradient of the output)."""
    x, grad = 2 * torch.randn(shape) + mean, torch.randn(shape)
    weight, bias = 1 + 0.1 * torch.randn(shape[-1]), torch.randn(shape[-1])
    return [tensor.to(DEVICE, dtype) for tensor in (x, weight, bias, grad)]


def run(x, weight, bias, grad):
    """(out, gradients of x, weight and bias, mean, 1/standard deviation) of the kernels."""
    out, mean, rstd = kernels.forward(x, weight, bias, EPSILON)
    return out, *kernels.backward(grad, x, weight, bias, mean, rstd), mean, rstd


def in_fp64(x, weight, bias, grad):
    """The same of torch in fp64."""
    leaves = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    out = functional.layer_norm(leaves[0], x.shape[-1:], *leaves[1:], EPSILON)
    out.backward(grad.double())
    wide = leaves[0].detach()
    mean = wide.mean(-1, keepdim=True)
    rstd = ((wide - mean).square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return out.detach(), *(leaf.grad for leaf in leaves), mean, rstd


def assert_close(got, exact):
    """Within a few roundings, norm-wise; statistics, which are fp32 always, within those of fp32."""
    for k, (mine, true) in enumerate(zip(got, exact, strict=True)):
        rounding = torch.finfo(mine.dtype).eps
        difference = (mine.double() - true).norm()
        assert difference <= 2 * rounding * (true.norm() + true.numel() ** 0.5), (k, difference, true.norm())


@either_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape, dtype, poisoned):
    case = inputs(shape, dtype)
    got = run(*case)
    assert [tensor.dtype for tensor in got] == [dtype] * 4 + [torch.float32] * 2
    assert_close(got, in_fp64(*case))


@either_dtype
@pytest.mark.parametrize("shape", [(3, 500), (5, 1030)], ids=str)
def test_values_and_gradients_of_rows_in_chunks(shape, dtype, chunked, poisoned):
    case = inputs(shape, dtype)
    assert not kernels.launch_options(shape[-1], case[0].element_size(), "forward")["WHOLE"]
    assert_close(run(*case), in_fp64(*case))


@pytest.mark.parametrize("columns", [100, 1000])
def test_a_mean_that_dwarfs_the_deviation(columns, chunked):
    """The textbook's mean of squares minus square of the mean would leave no digit of the variance."""
    case = inputs((4, columns), torch.float32, mean=3e4)
    *_, rstd = run(*case)
    exact = in_fp64(*case)[-1]
    torch.testing.assert_close(rstd.double(), exact, rtol=1e-4, atol=0)


@either_dtype
def test_more_rows_than_programs(dtype, monkeypatch):
    case = inputs((70, 64), dtype)
    few = run(*case)
    monkeypatch.setattr(kernels, "BACKWARD_WARPS", 8)
    assert kernels.new_partials(case[0], kernels.launch_options(64, 2, "backward")).shape[1] == 2
    several = run(*case)
    assert_close(several, in_fp64(*case))
    assert torch.equal(several[1], few[1])


def test_a_row_has_the_same_bits_among_any_others():
    x, weight, bias, grad = inputs((21, 192), torch.float32)
    out, grad_x, *_, mean, rstd = run(x, weight, bias, grad)
    for rows in (slice(0, 1), slice(5, 13), slice(20, 21)):
        part, part_grad_x, *_, part_mean, part_rstd = run(x[rows], weight, bias, grad[rows])
        for got, whole in ((part, out), (part_grad_x, grad_x), (part_mean, mean), (part_rstd, rstd)):
            assert torch.equal(got, whole[rows])


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("unit", [8, 4, 1])
def test_tiles_of_every_width(direction, unit):
    for columns in [*range(1, 70), 127, 1000, 4096, 5120, 8192, 12288, 16384, 20000, 32768, 65536, 100000]:
        whole, block_m, block_n, warps = kernels.tile_shape(columns, unit, direction)
        assert block_m * block_n == warps * 32 * kernels.ELEMENTS_A_THREAD[direction][unit]
        assert block_n % 64 == 0
        assert warps in (4, 8, 16)
        assert whole == (block_n >= columns)
