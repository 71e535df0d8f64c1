"""Bias, dropout, residual and layernorm as one op: the bits of the two ops, what is kept, and how torch sees it."""

import os

import pytest
import torch
from mask_reference import dropped_planes
from torch.nn import functional

from megaselect.kernels.bias_dropout_residual import bias_dropout_residual
from megaselect.kernels.bias_dropout_residual_layer_norm import bias_dropout_residual_layer_norm
from megaselect.kernels.dropout_mask import Plane, keep_scale, signed_seed
from megaselect.kernels.layer_norm import layer_norm

SEED, SITE, EPSILON = 2**64 - 3, 5 * 4096 + 4000, 1e-5
SHAPES = [  # rows, batch, hidden, row offset, column offset
    pytest.param((1, 1, 1, 0, 0), id="one"),
    pytest.param((17, 3, 33, 0, 0), id="odd"),
    pytest.param((20, 2, 100, 13, 64), id="offsets"),
    pytest.param((5, 2, 192, 13, 37), id="offsets-off-the-grid"),
    pytest.param((3, 1, 1000, 0, 0), id="wide"),
]
either_form = pytest.mark.parametrize("save_mask", [True, False], ids=["saved", "recomputed"])
every_threshold = pytest.mark.parametrize("threshold", [0, 26, 128])
not_interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted")
op = torch.ops.megaselect.bias_dropout_residual_layer_norm
backward_op = torch.ops.megaselect.bias_dropout_residual_layer_norm_backward


class Case:
    """Random inputs and the independent mask of a shape; every run makes leaves of its own."""

    def __init__(self, shape, dtype=torch.float32, threshold=26, backend="torch"):
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
        rows, batch, hidden, *offsets = shape
        self.backend, self.threshold = backend, threshold
        x, residual, *self.grads = (torch.randn(rows, batch, hidden).to(dtype) for _ in range(4))
        bias, ln_bias = (torch.randn(hidden).to(dtype) for _ in range(2))
        self.inputs = [x, bias, residual, (1 + 0.1 * torch.randn(hidden)).to(dtype), ln_bias]
        numbers = [2**32 - 1, 6, 40][:batch]
        self.samples, self.plane = torch.tensor(numbers), Plane(SEED, SITE, threshold, *offsets)
        drop = dropped_planes(SEED, numbers, SITE, 1, threshold, rows, hidden, *offsets)
        self.drop = torch.from_numpy(drop[:, 0]).transpose(0, 1)

    def leaves(self, dtype=None):
        return [tensor.to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in self.inputs]

    def fused(self, save_mask, *inputs):
        return bias_dropout_residual_layer_norm(
            *inputs, self.samples, self.plane, epsilon=EPSILON, save_mask=save_mask, backend=self.backend
        )

    def pair(self, save_mask, x, bias, residual, weight, ln_bias):
        out = bias_dropout_residual(
            x, bias, residual, self.samples, self.plane, save_mask=save_mask, backend=self.backend
        )
        return out, layer_norm(out, weight, ln_bias, EPSILON, self.backend)

    def plain(self, _, x, bias, residual, weight, ln_bias):
        out = residual + (x + bias).masked_fill(self.drop, 0) * keep_scale(self.threshold)
        return out, functional.layer_norm(out, out.shape[-1:], weight, ln_bias, EPSILON)

    def arguments(self, save_mask, *inputs):
        return *inputs, self.samples, signed_seed(SEED), *self.plane[1:], EPSILON, save_mask, self.backend

    def run(self, function, save_mask=False, used=(True, True), dtype=None):
        """[out, normed, and the gradient of every input] with those outputs used."""
        leaves = self.leaves(dtype)
        outputs = function(save_mask, *leaves)
        chosen = [(o, g.to(o.dtype)) for o, g, use in zip(outputs, self.grads, used, strict=True) if use]
        torch.autograd.backward(*zip(*chosen, strict=True))
        return [*(output.detach() for output in outputs), *(leaf.grad for leaf in leaves)]


def assert_same_bits(got, wanted):
    for k, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert (one is None) == (other is None), k
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one, other), k


@pytest.mark.parametrize("shape", SHAPES)
@either_form
@every_threshold
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_bits_of_the_two_ops(shape, dtype, threshold, save_mask):
    case = Case(shape, dtype, threshold)
    assert_same_bits(case.run(case.fused, save_mask), case.run(case.pair, save_mask))


@pytest.mark.parametrize("used", [(True, False), (False, True)], ids=["out", "normed"])
@either_form
@pytest.mark.parametrize("threshold", [0, 26])
def test_the_bits_of_the_two_ops_where_one_output_is_used(used, save_mask, threshold):
    case = Case((5, 2, 100, 3, 64), torch.float32, threshold)
    assert_same_bits(case.run(case.fused, save_mask, used), case.run(case.pair, save_mask, used))


@not_interpreted
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)], ids=["both", "out", "normed"])
@either_form
def test_the_bits_of_the_two_ops_on_triton(used, save_mask):
    case = Case((3, 2, 64, 3, 64), torch.float16, 26, "triton")
    assert_same_bits(case.run(case.fused, save_mask, used), case.run(case.pair, save_mask, used))


@pytest.mark.parametrize("shape", SHAPES)
@every_threshold
def test_fp64_is_the_plain_computation(shape, threshold):
    case = Case(shape, torch.float64, threshold)
    for got, exact in zip(case.run(case.fused), case.run(case.plain), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0, 26])
def test_error_is_at_most_that_of_a_plain_chain(dtype, threshold, relative_error):
    case = Case((33, 3, 192, 0, 0), dtype, threshold)
    exact = case.run(case.plain, dtype=torch.float64)
    for got, plain, true in zip(case.run(case.fused), case.run(case.plain), exact, strict=True):
        assert relative_error(got, true) <= 2 * relative_error(plain, true) + torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("threshold", [0, 26])
@either_form
def test_what_is_kept_for_backward(threshold, save_mask, dtype, record_saved):
    case = Case((17, 3, 33, 0, 0), dtype, threshold)
    leaves = case.leaves()
    with record_saved() as saved:
        out, _ = case.fused(save_mask, *leaves)
    parameters = {leaf.data_ptr() for leaf in (leaves[1], *leaves[3:])}
    kept = [tensor for tensor in saved if tensor.data_ptr() not in parameters]
    assert kept[0].data_ptr() == out.data_ptr()
    expected = [((17, 3, 33), dtype), *[((17, 3, 1), torch.float32)] * 2]
    expected += [((17, 3, 33), torch.int8)] * (save_mask and threshold > 0) + [((3,), torch.int64)] * (threshold > 0)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in kept] == expected


@either_form
def test_nothing_is_kept_without_gradients(save_mask, record_saved):
    case = Case((17, 3, 33, 0, 0))
    with record_saved() as saved, torch.no_grad():
        out, normed = case.fused(save_mask, *case.leaves())
    assert saved == []
    assert not out.requires_grad
    assert not normed.requires_grad


@either_form
@every_threshold
def test_gradcheck(save_mask, threshold):
    case = Case((3, 2, 5, 1, 3), torch.float64, threshold)
    assert torch.autograd.gradcheck(lambda *inputs: case.fused(save_mask, *inputs), case.leaves())


@pytest.mark.parametrize("wanted", range(5), ids=["x", "bias", "residual", "weight", "ln_bias"])
def test_one_of_the_gradients_alone(wanted):
    case = Case((17, 3, 33, 0, 0))
    leaves = [tensor.clone().requires_grad_(k == wanted) for k, tensor in enumerate(case.inputs)]
    outputs = case.fused(False, *leaves)
    torch.autograd.backward(outputs, case.grads)
    assert [leaf.grad is not None for leaf in leaves] == [k == wanted for k in range(5)]
    assert torch.equal(leaves[wanted].grad, case.run(case.fused)[2 + wanted])


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=not_interpreted)])
def test_strided_inputs(backend):
    case = Case((5, 2, 33, 0, 0), backend=backend)
    wanted = case.run(case.fused)
    vectors = [torch.stack([tensor, tensor + 1], 1)[:, 0] for tensor in (case.inputs[k] for k in (1, 3, 4))]
    x, residual, *case.grads = (
        tensor.transpose(0, 2).contiguous().transpose(0, 2) for tensor in (case.inputs[0], case.inputs[2], *case.grads)
    )
    case.inputs = [x, vectors[0], residual, *vectors[1:]]
    case.samples = torch.stack([case.samples, case.samples + 1], 1)[:, 0]
    strided = [*case.inputs, *case.grads, case.samples]
    assert not any(tensor.is_contiguous() for tensor in strided)
    leaves = [tensor.detach().requires_grad_() for tensor in case.inputs]
    outputs = case.fused(False, *leaves)
    torch.autograd.backward(outputs, case.grads)
    assert_same_bits([*(output.detach() for output in outputs), *(leaf.grad for leaf in leaves)], wanted)


def test_batches_of_1_are_the_rows_of_a_batch_of_2():
    case = Case((9, 2, 70, 3, 0))
    x, bias, residual, *rest = case.inputs
    whole, samples = case.fused(False, *case.inputs), case.samples
    for k in range(2):
        one = slice(k, k + 1)
        case.samples = samples[one]
        assert_same_bits(
            case.fused(False, x[:, one], bias, residual[:, one], *rest), [tensor[:, one] for tensor in whole]
        )


@pytest.mark.parametrize(
    ("threshold", "save_mask", "backend"),
    [
        (0, True, "torch"),
        (26, True, "torch"),
        (26, False, "torch"),
        pytest.param(0, False, "triton", marks=not_interpreted),
    ],
)
def test_opcheck(save_mask, threshold, backend):
    case = Case((3, 2, 7, 1, 0), torch.float32, threshold, backend)
    torch.library.opcheck(op.default, case.arguments(save_mask, *case.leaves()))


@pytest.mark.parametrize(("threshold", "save_mask", "direct"), [(0, False, True), (26, True, True), (26, False, False)])
def test_opcheck_of_backward(save_mask, threshold, direct):
    case = Case((5, 2, 7, 1, 3), torch.float32, threshold)
    out, _, mean, rstd, mask = op(*case.arguments(save_mask, *case.inputs))
    grad_out, grad_normed = case.grads
    kept = (out, mean, rstd, mask, case.samples, *case.inputs[3:])
    scalars = (signed_seed(SEED), *case.plane[1:], "torch")
    torch.library.opcheck(backward_op.default, (grad_out if direct else None, grad_normed, *kept, *scalars))


@either_form
@pytest.mark.parametrize("used", [(True, True), (False, True)], ids=["both", "normed"])
def test_compiled_gives_the_same_bits(save_mask, used):
    case = Case((17, 3, 33, 0, 0), torch.bfloat16)
    compiled = torch.compile(case.fused, fullgraph=True, backend="aot_eager")
    assert_same_bits(case.run(compiled, save_mask, used), case.run(case.fused, save_mask, used))


def test_a_checkpointed_region_runs_it_again():
    case = Case((17, 3, 33, 0, 0), torch.bfloat16)

    def checkpointed(save_mask, *inputs):
        return torch.utils.checkpoint.checkpoint(case.fused, save_mask, *inputs, use_reentrant=False)

    assert_same_bits(case.run(checkpointed), case.run(case.fused))


def test_an_unknown_backend_is_an_error():
    case = Case((2, 1, 4, 0, 0), backend="cudnn")
    with pytest.raises(ValueError, match="kernel backend 'cudnn' is not one of auto, triton, numba, torch"):
        case.fused(False, *case.inputs)
