"""Bias, dropout and residual on a CPU: values, gradients, what is kept, and how torch sees the op."""

import pytest
import torch
from mask_reference import dropped_planes
from turns import in_turns

from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.dropout_mask import Plane, keep_scale, signed_seed

SEED, SITE = 2**64 - 3, 5 * 4096 + 4000
SHAPES = [  # rows, batch, hidden, row offset, column offset
    pytest.param((1, 1, 1, 0, 0), id="one"),
    pytest.param((17, 3, 33, 0, 0), id="odd"),
    pytest.param((20, 2, 70, 13, 37), id="offsets"),
    pytest.param((64, 2, 128, 64, 64), id="whole-tiles"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES)
either_form = pytest.mark.parametrize("save_mask", [True, False], ids=["saved", "recomputed"])
either_backend = pytest.mark.parametrize(
    "backend",
    ["torch", pytest.param("triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted"))],
)
optional = pytest.mark.parametrize(
    ("with_bias", "with_residual"), [(True, True), (True, False), (False, True), (False, False)]
)
op = torch.ops.megaselect.bias_dropout_residual
backward_op = torch.ops.megaselect.bias_dropout_residual_backward


class Case:
    """Random inputs and the independent mask of a shape; every run makes leaves of its own."""

    def __init__(self, shape, dtype=torch.float32, threshold=26, with_bias=True, with_residual=True, backend="torch"):
        self.backend = backend
        rows, batch, hidden, row_offset, column_offset = shape
        generator = torch.Generator().manual_seed(rows * 1000 + hidden)
        self.x, residual, self.grad = (torch.randn(rows, batch, hidden, generator=generator).to(dtype) for _ in "xrg")
        bias = torch.randn(hidden, generator=generator).to(dtype)
        self.inputs = (self.x, bias if with_bias else None, residual if with_residual else None)
        numbers = [2**32 - 1, 6, 40][:batch]
        self.samples = torch.tensor(numbers)
        self.plane = Plane(SEED, SITE, threshold, row_offset, column_offset)
        drop = dropped_planes(SEED, numbers, SITE, 1, threshold, rows, hidden, row_offset, column_offset)
        self.drop = torch.from_numpy(drop[:, 0]).transpose(0, 1)

    def leaves(self, dtype=None):
        return [None if t is None else t.to(dtype or t.dtype, copy=True).requires_grad_() for t in self.inputs]

    def apply(self, save_mask, x, bias, residual):
        return bias_dropout_residual(
            x, bias, residual, self.samples, self.plane, save_mask=save_mask, backend=self.backend
        )

    def arguments(self, save_mask, *inputs):
        return *inputs, self.samples, signed_seed(SEED), *self.plane[1:], save_mask, "torch"

    def run(self, save_mask):
        """[out, and the gradient of every input that is present]."""
        leaves = self.leaves()
        out = self.apply(save_mask, *leaves)
        out.backward(self.grad)
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]

    def plain(self, dtype):
        """The same of torch's own ops, rounded to `dtype` after each of them."""
        x, bias, residual = leaves = self.leaves(dtype)
        biased = x if bias is None else x + bias
        scaled = biased.masked_fill(self.drop, 0) * keep_scale(self.plane.threshold)
        out = scaled if residual is None else residual + scaled
        out.backward(self.grad.to(dtype))
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def assert_same_bits(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@every_shape
@either_form
@optional
@pytest.mark.parametrize("threshold", [0, 26, 200])
def test_fp64_is_the_plain_computation(shape, save_mask, with_bias, with_residual, threshold):
    case = Case(shape, torch.float64, threshold, with_bias, with_residual)
    for got, exact in zip(case.run(save_mask), case.plain(torch.float64), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_that_of_a_plain_chain(shape, dtype, threshold, relative_error):
    case = Case(shape, dtype, threshold)
    out, grad_x, grad_bias, grad_residual = case.run(False)
    plain, exact = case.plain(dtype), case.plain(torch.float64)
    assert out.dtype == dtype
    assert relative_error(out, exact[0]) <= relative_error(plain[0], exact[0])
    assert relative_error(grad_x, exact[1]) <= 2 * relative_error(plain[1], exact[1])
    assert relative_error(grad_bias, exact[2]) <= 2 * relative_error(plain[2], exact[2])
    assert torch.equal(grad_residual, case.grad)


@every_shape
def test_bf16_is_rounded_once(shape):
    case = Case(shape, torch.bfloat16)
    wide = case.plain(torch.float32)[0].to(torch.bfloat16)
    assert torch.equal(case.run(True)[0], wide)


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0, 26])
def test_a_rebuilt_mask_gives_the_bits_of_a_saved_one(shape, dtype, threshold):
    case = Case(shape, dtype, threshold)
    assert_same_bits(case.run(False), case.run(True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("threshold", "save_mask", "expected"), [(26, True, 17 * 3 * 33 + 8 * 3), (26, False, 8 * 3), (0, True, 0)]
)
def test_bytes_kept_for_backward(threshold, save_mask, expected, dtype, record_saved):
    case = Case((17, 3, 33, 0, 0), dtype, threshold)
    with record_saved() as saved:
        case.apply(save_mask, *case.leaves())
    assert sum(tensor.nbytes for tensor in saved) == expected


@either_form
def test_nothing_is_kept_without_gradients(save_mask, record_saved):
    case = Case((17, 3, 33, 0, 0))
    with record_saved() as saved, torch.no_grad():
        out = case.apply(save_mask, *case.leaves())
    assert saved == []
    assert not out.requires_grad
    assert torch.equal(out, case.run(save_mask)[0])


@either_form
@optional
def test_gradcheck(save_mask, with_bias, with_residual):
    case = Case((3, 2, 5, 1, 3), torch.float64, 128, with_bias, with_residual)
    assert torch.autograd.gradcheck(lambda *inputs: case.apply(save_mask, *inputs), case.leaves())


@either_form
@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["x", "bias", "residual"])
def test_one_of_the_gradients_alone(save_mask, wanted):
    case = Case((17, 3, 33, 0, 0))
    leaves = [tensor.clone().requires_grad_(k == wanted) for k, tensor in enumerate(case.inputs)]
    case.apply(save_mask, *leaves).backward(case.grad)
    assert [leaf.grad is not None for leaf in leaves] == [k == wanted for k in range(3)]
    assert torch.equal(leaves[wanted].grad, case.run(save_mask)[1 + wanted])


@in_turns(
    2,
    {
        "save_mask": {"saved": True, "recomputed": False},
        "with_bias": [True, False],
        "with_residual": [True, False],
        "threshold": [0, 26],
    },
)
def test_opcheck(save_mask, with_bias, with_residual, threshold):
    case = Case((5, 2, 7, 1, 3), torch.float32, threshold, with_bias, with_residual)
    torch.library.opcheck(op.default, case.arguments(save_mask, *case.leaves()))


@either_form
def test_opcheck_of_backward(save_mask):
    case = Case((5, 2, 7, 1, 3))
    _, mask = op(*case.arguments(save_mask, *case.inputs))
    assert mask.numel() == (70 if save_mask else 0)
    torch.library.opcheck(
        backward_op.default, (case.grad, mask, case.samples, signed_seed(SEED), *case.plane[1:], "torch")
    )


@either_form
def test_compiled_gives_the_same_bits(save_mask):
    case = Case((17, 3, 33, 0, 0))
    compiled = torch.compile(lambda *inputs: case.apply(save_mask, *inputs), fullgraph=True, backend="aot_eager")
    leaves = case.leaves()
    out = compiled(*leaves)
    out.backward(case.grad)
    assert_same_bits([out, *(leaf.grad for leaf in leaves)], case.run(save_mask))


@either_form
@either_backend
def test_strided_inputs(save_mask, backend):
    case = Case((5, 2, 32, 0, 0), threshold=128, backend=backend)  # the interpreter has a quarter of the work so
    wanted = case.run(save_mask)
    strided = [t.transpose(0, 2).contiguous().transpose(0, 2) for t in (case.x, case.inputs[2], case.grad)]
    bias = torch.stack([case.inputs[1], case.x[0, 0]], 1)[:, 0]
    case.inputs, case.grad = (strided[0], bias, strided[1]), strided[2]
    assert not any(tensor.is_contiguous() for tensor in (*strided, bias))
    assert_same_bits(case.run(save_mask), wanted)
    case.samples = torch.stack([case.samples, case.samples + 1], 1)[:, 0]
    assert not case.samples.is_contiguous()
    assert_same_bits(case.run(save_mask), wanted)


@either_form
def test_halves_of_the_batch_rows_and_channels_are_those_of_the_whole(save_mask):
    case = Case((45, 2, 141, 0, 0))
    whole, (x, bias, residual) = case.apply(save_mask, *case.inputs), case.inputs
    plane, form = case.plane, {"save_mask": save_mask, "backend": "torch"}
    for k in range(2):
        one = slice(k, k + 1)
        part = bias_dropout_residual(x[:, one], bias, residual[:, one], case.samples[one], plane, **form)
        assert torch.equal(part, whole[:, one])
    for rows in (slice(0, 19), slice(19, 45)):
        moved = plane._replace(row_offset=rows.start)
        part = bias_dropout_residual(x[rows], bias, residual[rows], case.samples, moved, **form)
        assert torch.equal(part, whole[rows])
    for columns in (slice(0, 67), slice(67, 141)):
        moved, here = plane._replace(column_offset=columns.start), (..., columns)
        part = bias_dropout_residual(x[here], bias[columns], residual[here], case.samples, moved, **form)
        assert torch.equal(part, whole[here])
