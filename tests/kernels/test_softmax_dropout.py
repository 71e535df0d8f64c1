"""The fused softmax, dropout and value product on a CPU: values, gradients, what it keeps, and how torch sees it."""

import numpy as np
import pytest
import torch
from mask_reference import dropped_planes
from torch.utils.flop_counter import FlopCounterMode

from megaselect.kernels import softmax_dropout_numba
from megaselect.kernels.dropout_mask import Plane, keep_scale, signed_seed
from megaselect.kernels.softmax_dropout import TorchFallback, softmax_dropout_value

SEED, SITE = 2**64 - 3, 5 * 4096 + 2
FORMS = {"none": (True, True), "dropout": (True, False), "softmax": (False, True), "softmax+dropout": (False, False)}
SHAPES = [  # batch, heads, q, k, head size, row offset, column offset
    pytest.param((1, 1, 1, 1, 4, 0, 0), id="1"),
    pytest.param((2, 3, 17, 17, 8, 0, 0), id="17"),
    pytest.param((2, 2, 33, 33, 5, 0, 0), id="33"),
    pytest.param((1, 2, 20, 70, 16, 50, 0), id="last-rows"),
    pytest.param((2, 2, 19, 41, 8, 37, 13), id="odd-offsets"),
    pytest.param((1, 2, 40, 40, 8, 3, 13), id="dead-rows"),
    pytest.param((1, 2, 16, 24, 8, 16, 64), id="all-rows-dead"),
    pytest.param((3, 3, 140, 140, 8, 0, 0), id="several-chunks"),
]
every_form = pytest.mark.parametrize("form", FORMS)
either_backend = pytest.mark.parametrize(
    "backend",
    ["own", pytest.param("triton", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted"))],
)
every_shape = pytest.mark.parametrize("shape", SHAPES)
op = torch.ops.megaselect.softmax_dropout_value
backward_op = torch.ops.megaselect.softmax_dropout_value_backward


class Case:
    """Random inputs and the independent mask of a shape; every run makes leaves of its own."""

    backend = "torch"

    def __init__(self, shape, dtype=torch.float32, threshold=26, spread=3.0):
        self.batch, self.heads, self.rows, self.keys, self.head_size, row_offset, column_offset = shape
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.keys)
        score_shape = (self.batch, self.heads, self.rows, self.keys)
        value_shape = (self.batch, self.heads, self.keys, self.head_size)
        hidden_shape = (self.rows, self.batch, self.heads * self.head_size)
        self.scores = (spread * torch.randn(score_shape, generator=generator)).to(dtype)
        self.value = torch.randn(value_shape, generator=generator).to(dtype)
        self.grad = torch.randn(hidden_shape, generator=generator).to(dtype)
        numbers = [2**32 - 1, 6, 40][: self.batch]
        self.samples = torch.tensor(numbers)
        self.plane = Plane(SEED, SITE, threshold, row_offset, column_offset)
        offsets = row_offset, column_offset
        drop = dropped_planes(SEED, numbers, SITE, self.heads, threshold, self.rows, self.keys, *offsets)
        self.drop = torch.from_numpy(drop)
        columns, rows = np.arange(self.keys)[None, :], np.arange(self.rows)[:, None]
        self.live = torch.from_numpy(column_offset + columns <= row_offset + rows)

    def run(self, form):
        """(context, grad of scores, grad of value) of the op."""
        scores, value = (t.clone().requires_grad_() for t in (self.scores, self.value))
        context = self.apply(form, scores, value)
        context.backward(self.grad)
        return context.detach(), scores.grad, value.grad

    def apply(self, form, scores, value):
        form = dict(zip(("save_probs", "save_mask"), FORMS[form], strict=True))
        return softmax_dropout_value(scores, value, self.samples, self.plane, **form, backend=self.backend)

    def arguments(self, form, scores, value):
        return scores, value, self.samples, signed_seed(SEED), *self.plane[1:], *FORMS[form], self.backend

    def plain(self, dtype):
        """The same of torch's own ops, rounded to `dtype` after each of them."""
        scores, value = (t.to(dtype, copy=True).requires_grad_() for t in (self.scores, self.value))
        probs = torch.softmax(scores.masked_fill(~self.live, -torch.inf), -1)
        probs = probs.masked_fill(~self.live.any(-1, keepdim=True), 0)  # NaN: a row without a live column
        dropped = probs.masked_fill(self.drop, 0) * keep_scale(self.plane.threshold)
        context = (dropped @ value).permute(2, 0, 1, 3).flatten(2)
        context.backward(self.grad.to(dtype))
        return context.detach(), scores.grad.masked_fill(~self.live, 0), value.grad


@pytest.fixture(autouse=True, scope="module", params=["torch", "numba"])
def backend_of_cases(request):
    """Numba leaves fp64 and fp16 to torch."""
    Case.backend = request.param


def assert_same_bits(got, wanted):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@every_form
@every_shape
@pytest.mark.parametrize("threshold", [0, 26, 200])
def test_fp64_is_the_plain_computation(shape, form, threshold):
    case = Case(shape, torch.float64, threshold)
    for got, exact in zip(case.run(form), case.plain(torch.float64), strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@every_shape
@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_that_of_a_plain_chain(shape, dtype, threshold, relative_error):
    case = Case(shape, dtype, threshold, spread=1.0)  # what products of normalised queries and keys have
    results = zip(case.run("softmax+dropout"), case.plain(dtype), case.plain(torch.float64), strict=True)
    for got, plain, exact in results:
        assert got.dtype == dtype
        if exact.norm() > 1e-12:
            assert relative_error(got, exact) <= 2 * relative_error(plain, exact)
        else:  # no live column, or one: its prob is 1 whatever the score
            bound = 2 * torch.finfo(dtype).eps * case.grad.double().norm() * case.value.double().norm()
            assert got.double().norm() <= (bound if case.live.any() else 0)


@every_shape
@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_gives_the_same_bits(shape, dtype, threshold):
    case = Case(shape, dtype, threshold)
    wanted = case.run("none")
    for form in FORMS:
        assert_same_bits(case.run(form), wanted)


@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@every_form
def test_bytes_kept_for_backward(form, dtype, threshold, record_saved):
    case = Case((2, 3, 17, 21, 8, 4, 0), dtype, threshold)
    with record_saved() as saved:
        case.apply(form, case.scores.requires_grad_(), case.value.requires_grad_())
    element, scores, rows = dtype.itemsize, case.scores.numel(), 2 * 3 * 17
    common = element * (case.grad.numel() + case.value.numel())
    statistics = 2 * 4 * rows
    if threshold:
        common += 8 * case.batch  # the sample indices
        expected = {
            "none": (2 * element + 1) * scores,
            "dropout": element * scores,
            "softmax": (element + 1) * scores + statistics,
            "softmax+dropout": element * scores + statistics,
        }[form]
    else:
        expected = element * scores + (0 if FORMS[form][0] else statistics)
    assert sum(tensor.nbytes for tensor in saved) == common + expected
    assert len({tensor.data_ptr() for tensor in saved}) == len(saved)  # nothing is kept, or counted, twice


@every_form
def test_nothing_is_kept_without_gradients(form, record_saved):
    case = Case((2, 3, 17, 17, 8, 0, 0))
    with record_saved() as saved:
        with torch.no_grad():
            context = case.apply(form, case.scores.requires_grad_(), case.value.requires_grad_())
        without = case.apply(form, case.scores.detach(), case.value.detach())
    assert saved == []
    assert not context.requires_grad
    assert torch.equal(context, without)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_value_may_be_a_strided_view_of_qkv(form, dtype):
    case = Case((2, 3, 33, 33, 8, 0, 0), dtype)
    qkv = torch.zeros(33, 2 * 3, 3, 8, dtype=dtype)
    qkv[:, :, 2] = case.value.flatten(0, 1).transpose(0, 1)
    qkv = qkv.view(33, 2, 3 * 3 * 8).requires_grad_()
    scores = case.scores.clone().requires_grad_()
    value = qkv.view(33, 2 * 3, 3, 8).unbind(2)[2].transpose(0, 1).unflatten(0, (-1, 3))
    assert not value.is_contiguous()
    context = case.apply(form, scores, value)
    context.backward(case.grad)
    wanted = case.run(form)
    grads = qkv.grad.view(33, 6, 3, 8).transpose(0, 1)
    assert_same_bits((context, scores.grad, grads[:, :, 2].unflatten(0, (-1, 3))), wanted)
    assert not grads[:, :, :2].any()


@pytest.mark.parametrize("form", ["none", "softmax+dropout"])  # all saved, and all recomputed from the arguments
@either_backend
def test_scores_samples_and_grad_may_be_strided(form, backend):
    case = Case((2, 1, 5, 8, 4, 1, 0), threshold=128)  # the interpreter has half the work so
    case.backend = backend if backend == "triton" else Case.backend
    wanted = case.run(form)
    case.grad = case.grad.transpose(0, 2).contiguous().transpose(0, 2)
    assert_same_bits(case.run(form), wanted)
    case.scores = case.scores.transpose(2, 3).contiguous().transpose(2, 3)
    assert not case.scores.is_contiguous()
    assert_same_bits(case.run(form), wanted)
    case.samples = torch.stack([case.samples, case.samples + 1], 1)[:, 0]
    assert not case.samples.is_contiguous()
    assert_same_bits(case.run(form), wanted)


@every_form
@pytest.mark.parametrize("threshold", [0, 26])
def test_rows_without_a_live_column_give_zeros(form, threshold):
    case = Case((1, 2, 40, 40, 8, 3, 13), threshold=threshold)
    context, grad_scores, grad_value = case.run(form)
    assert not case.live[:10].any()
    assert not context[:10].any()
    assert context[10].any()
    assert not grad_scores[:, :, :10].any()
    assert not grad_value[:, :, 30:].any()  # keys 43 and later: no row up to 42 sees them
    case.grad[:10] = 1e30  # what arrives at a dead row reaches nothing
    assert_same_bits(case.run(form), (context, grad_scores, grad_value))


@every_form
def test_halves_of_the_heads_and_of_the_rows_are_those_of_the_whole(form):
    case = Case((2, 4, 34, 34, 8, 0, 0), torch.float64)
    store = dict(zip(("save_probs", "save_mask"), FORMS[form], strict=True))
    whole = case.apply(form, case.scores, case.value)
    for first in (0, 2):
        heads, width = slice(first, first + 2), slice(8 * first, 8 * first + 16)
        plane = case.plane._replace(site=SITE + first)
        part = softmax_dropout_value(case.scores[:, heads], case.value[:, heads], case.samples, plane, **store)
        torch.testing.assert_close(part, whole[:, :, width], rtol=1e-13, atol=1e-13)
    for rows in (slice(0, 13), slice(13, 34)):
        plane = case.plane._replace(row_offset=rows.start)
        part = softmax_dropout_value(case.scores[:, :, rows], case.value, case.samples, plane, **store)
        torch.testing.assert_close(part, whole[rows], rtol=1e-13, atol=1e-13)


@every_form
def test_one_batch_of_two_is_two_of_one(form):
    case = Case((2, 2, 17, 17, 8, 0, 0), torch.float64)
    whole = case.apply(form, case.scores, case.value)
    for k in range(2):
        one = slice(k, k + 1)
        save_probs, save_mask = FORMS[form]
        part = softmax_dropout_value(
            case.scores[one], case.value[one], case.samples[one], case.plane,
            save_probs=save_probs, save_mask=save_mask,
        )  # fmt: skip
        torch.testing.assert_close(part, whole[:, one], rtol=1e-13, atol=1e-13)


@every_form
@pytest.mark.parametrize("threshold", [0, 128])
def test_gradcheck(form, threshold):
    case = Case((2, 2, 3, 5, 2, 2, 1), torch.float64, threshold)
    inputs = case.scores.requires_grad_(), case.value.requires_grad_()
    assert torch.autograd.gradcheck(lambda *pair: case.apply(form, *pair), inputs)


@every_form
@pytest.mark.parametrize("wanted", ["scores", "value"])
def test_one_of_the_gradients_alone(form, wanted):
    case = Case((1, 2, 17, 17, 8, 0, 0))
    scores = case.scores.clone().requires_grad_(wanted == "scores")
    value = case.value.clone().requires_grad_(wanted == "value")
    case.apply(form, scores, value).backward(case.grad)
    _, grad_scores, grad_value = case.run(form)
    if wanted == "scores":
        assert value.grad is None
        assert torch.equal(scores.grad, grad_scores)
    else:
        assert scores.grad is None
        assert torch.equal(value.grad, grad_value)


@every_form
@pytest.mark.parametrize(
    ("threshold", "dtype"), [(26, torch.float32), (0, torch.bfloat16), (26, torch.float64)], ids=str
)
def test_opcheck(form, threshold, dtype):
    case = Case((2, 2, 5, 7, 4, 2, 0), dtype, threshold)
    inputs = case.scores.requires_grad_(), case.value.requires_grad_()
    torch.library.opcheck(op.default, case.arguments(form, *inputs))


@every_form
@pytest.mark.parametrize("threshold", [0, 26])
def test_opcheck_of_backward(form, threshold):
    case = Case((2, 2, 5, 7, 4, 2, 0), torch.float32, threshold)
    context, *kept = op(*case.arguments(form, case.scores, case.value))
    scores = case.scores.new_empty(0) if FORMS[form][0] else case.scores
    arguments = case.grad, context, case.value, case.samples, scores, *kept
    torch.library.opcheck(backward_op.default, (*arguments, signed_seed(SEED), *case.plane[1:], case.backend))


@every_form
def test_compiled_gives_the_same_bits(form):
    case = Case((2, 2, 17, 17, 8, 0, 0))
    wanted = case.run(form)
    compiled = torch.compile(lambda *pair: case.apply(form, *pair), fullgraph=True, backend="aot_eager")
    scores, value = case.scores.clone().requires_grad_(), case.value.clone().requires_grad_()
    context = compiled(scores, value)
    context.backward(case.grad)
    assert_same_bits((context, scores.grad, value.grad), wanted)


@every_form
def test_flops_are_those_of_the_products(form):
    case = Case((2, 3, 17, 21, 8, 4, 0))
    with FlopCounterMode(display=False) as counter:
        context = case.apply(form, case.scores.requires_grad_(), case.value.requires_grad_())
    product = 2 * 2 * 3 * 17 * 21 * 8
    assert counter.get_total_flops() == product
    with FlopCounterMode(display=False) as counter:
        context.backward(case.grad)
    assert counter.get_total_flops() == 2 * product


@every_form
@pytest.mark.parametrize("threshold", [0, 26])
def test_large_fp16_scores(form, threshold, relative_error):
    case = Case((1, 2, 17, 17, 8, 0, 0), torch.float16, threshold)
    case.scores = torch.where(case.scores > 0, 65504.0, -65504.0).to(torch.float16)
    for got, exact in zip(case.run(form), case.plain(torch.float64), strict=True):
        assert got.isfinite().all()
        assert relative_error(got, exact) < 2e-3


@every_form
@pytest.mark.parametrize("threshold", [0, 26])
def test_an_overflow_above_the_diagonal_does_not_leak(form, threshold):
    case = Case((1, 2, 9, 16, 8, 0, 0), torch.float16, threshold)
    case.value[:, :, 9:] = 0  # keys that no row sees
    wanted = case.run(form)
    case.value[:, :, 9:] = 65504.0
    product = torch.einsum("qad,akd->aqk", case.grad.view(9, 2, 8), case.value[0])
    assert product[..., 9:].isinf().any()
    assert_same_bits(case.run(form), wanted)


@every_form
@pytest.mark.parametrize("above", [-torch.inf, -1e30, 1e30])
def test_scores_above_the_diagonal_do_not_matter(form, above):
    case = Case((1, 2, 17, 17, 8, 0, 0))
    wanted = case.run(form)
    case.scores = case.scores.masked_fill(~case.live, above)
    assert_same_bits(case.run(form), wanted)


@pytest.mark.parametrize("threshold", [0, 26])
@pytest.mark.parametrize("poison", [torch.inf, -torch.inf, torch.nan])
def test_no_gradient_above_the_diagonal_matters(threshold, poison):
    kernels = TorchFallback if Case.backend == "torch" else softmax_dropout_numba
    case = Case((1, 2, 17, 17, 8, 0, 0), threshold=threshold)
    _, row_max, inverse_sum, *_ = kernels.forward(case.scores, case.samples, case.plane, False, False)
    empty, delta = case.scores.new_empty(0), torch.full((1, 2, 17), 0.5)
    saved = {"scores": case.scores, "row_max": row_max, "inverse_sum": inverse_sum, "probs": empty}
    mask = torch.empty(0, dtype=torch.int8)
    results = []
    for above in (0.0, poison):
        grad = torch.ones_like(case.scores).masked_fill(~case.live, above)
        results.append(kernels.backward(grad, delta, case.samples, case.plane, **saved, mask=mask, write_dropped=True))
    assert_same_bits(*results)
    assert results[0][0].any()
