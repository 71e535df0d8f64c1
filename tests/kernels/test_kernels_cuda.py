"""The Triton kernels on a real GPU: accuracy, repeatability, poisoned memory, odd and very large sizes."""

import os

import pytest
import torch
from on_cuda import fresh_inputs, poison  # noqa: F401  the fixture serves every test here

from megaselect.kernels import bias_dropout_residual_triton, softmax_dropout_triton
from megaselect.kernels.dropout_mask import Plane, keep_hidden, keep_planes

pytestmark = pytest.mark.cuda

THRESHOLD, SITE = 26, 11 * 4096 + 3
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LENGTHS = [1, 17, 127, 1000, 1024, 4097]
FORMS = {"none": (True, True), "dropout": (True, False), "softmax": (False, True), "softmax+dropout": (False, False)}
RUNS = 250
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16", "fp32"])


class Scores:
    """Random inputs of the softmax + dropout kernels, and what they should make of them, in fp64."""

    def __init__(self, batch, heads, length, dtype, threshold=THRESHOLD):
        shape = (batch, heads, length, length)
        self.scores = (3 * torch.randn(shape, device="cuda")).to(dtype)
        self.grad = torch.randn(shape, device="cuda").to(dtype)
        self.delta = torch.randn(shape[:-1], device="cuda")
        self.samples = torch.randint(0, 2**40, (batch,), device="cuda")
        self.plane = Plane(int.from_bytes(os.urandom(8), "little"), SITE, threshold)
        keep = keep_planes(self.samples.cpu(), self.plane, heads, length, length, causal=True)
        self.mask = keep.cuda()
        self.dead = torch.ones(length, length, dtype=torch.bool, device="cuda").triu(1)

    def forward(self, form):
        return softmax_dropout_triton.forward(self.scores, self.samples, self.plane, *FORMS[form])

    def backward(self, form, saved, write_dropped=True):
        _, row_max, inverse_sum, probs, mask = saved
        save_probs, _ = FORMS[form]
        empty = self.scores.new_empty(0)
        return softmax_dropout_triton.backward(
            self.grad.masked_fill(self.dead, torch.nan),
            self.delta,
            self.samples,
            self.plane,
            scores=empty if save_probs else self.scores,
            row_max=empty if save_probs else row_max,
            inverse_sum=empty if save_probs else inverse_sum,
            probs=probs,
            mask=mask,
            write_dropped=write_dropped,
        )

    def probs_in(self, dtype):
        return torch.softmax(self.scores.to(dtype).masked_fill(self.dead, -torch.inf), -1)

    def grad_scores_from(self, probs):
        grad = self.grad.to(torch.promote_types(probs.dtype, torch.float32)).where(self.mask != 0, 0.0)
        return (probs * (grad - self.delta[..., None])).to(probs.dtype)


@every_dtype
@pytest.mark.parametrize("length", LENGTHS)
def test_softmax_dropout_is_as_accurate_as_torch(length, dtype, relative_error):
    case = Scores(2, 2, length, dtype)
    poison(case.scores, case.scores, case.mask, case.delta)
    saved = case.forward("none")
    dropped, _, _, probs, mask = saved
    assert torch.equal(mask, case.mask)
    assert torch.equal(dropped, probs.where(case.mask != 0, 0.0))
    exact, same_dtype = case.probs_in(torch.float64), case.probs_in(dtype)
    assert relative_error(probs, exact) <= 2 * relative_error(same_dtype, exact)
    grad_scores, _ = case.backward("none", saved)
    exact_grad = case.grad_scores_from(exact)
    assert relative_error(grad_scores, exact_grad) <= 2 * relative_error(case.grad_scores_from(same_dtype), exact_grad)


@every_dtype
@pytest.mark.parametrize("length", LENGTHS)
def test_every_storage_form_gives_the_same_bits(length, dtype):
    case = Scores(1, 3, length, dtype)
    results = {}
    for form in FORMS:
        poison(case.scores, case.mask, case.delta)
        saved = case.forward(form)
        poison(case.scores)
        results[form] = (*saved[:3], *case.backward(form, saved))
    for form, result in results.items():
        for got, wanted in zip(result, results["none"], strict=True):
            assert not got.isnan().any(), form
            assert torch.equal(got, wanted), form
    assert not results["none"][3].masked_select(case.dead).any()


@every_dtype
def test_softmax_dropout_repeats_bitwise(dtype):
    case = Scores(1, 8, 1024, dtype)
    first = case.forward("softmax+dropout")
    first_backward = case.backward("softmax+dropout", first)
    for _ in range(RUNS):
        again = case.forward("softmax+dropout")
        for got, wanted in zip(again, first, strict=True):
            assert torch.equal(got, wanted)
        for got, wanted in zip(case.backward("softmax+dropout", again), first_backward, strict=True):
            assert torch.equal(got, wanted)


def test_head_halves_with_an_offset_equal_the_whole():
    case = Scores(1, 4, 1000, torch.bfloat16)
    whole = case.forward("none")
    for first in (0, 2):
        part = softmax_dropout_triton.forward(
            case.scores[:, first : first + 2].contiguous(),
            case.samples,
            case.plane._replace(site=case.plane.site + first),
            *FORMS["none"],
        )
        for got, wanted in zip(part, whole, strict=True):
            assert torch.equal(got, wanted[:, first : first + 2])


def test_above_2_to_the_31_scores():
    heads, length = 9, 16384
    gib_needed = 30
    if torch.cuda.mem_get_info()[0] < gib_needed * 2**30:
        pytest.skip(f"needs {gib_needed} GiB of free GPU memory")
    scores = torch.randn(1, heads, length, length, device="cuda", dtype=torch.bfloat16)
    assert scores.numel() > 2**31
    grad, delta = torch.randn_like(scores), torch.randn(1, heads, length, device="cuda")
    samples, plane = torch.tensor([2**33 + 5], device="cuda"), Plane(1234, SITE, THRESHOLD)

    def forward_and_backward(first, last):
        here = scores[:, first:last]
        own_plane = plane._replace(site=SITE + first)
        dropped, row_max, inverse_sum, probs, mask = softmax_dropout_triton.forward(
            here, samples, own_plane, save_probs=False, save_mask=False
        )
        grad_scores, recomputed = softmax_dropout_triton.backward(
            grad[:, first:last].clone(),
            delta[:, first:last].contiguous(),
            samples,
            own_plane,
            scores=here,
            row_max=row_max,
            inverse_sum=inverse_sum,
            probs=probs,
            mask=mask,
            write_dropped=True,
        )
        return dropped, row_max, inverse_sum, grad_scores, recomputed

    whole = forward_and_backward(0, heads)
    for head in (0, heads - 1):
        for got, wanted in zip(forward_and_backward(head, head + 1), whole, strict=True):
            assert torch.equal(got, wanted[:, head : head + 1])


class Hidden:
    """Random inputs of the bias + dropout + residual kernels, with their mask."""

    def __init__(self, rows, batch, columns, dtype):
        self.x, self.residual = (torch.randn(rows, batch, columns, device="cuda").to(dtype) for _ in range(2))
        self.bias = torch.randn(columns, device="cuda").to(dtype)
        self.samples = torch.randint(0, 2**40, (batch,), device="cuda")
        self.plane = Plane(int.from_bytes(os.urandom(8), "little"), SITE, THRESHOLD)
        self.mask = keep_hidden(self.samples.cpu(), self.plane, rows, columns).cuda()

    def forward(self, save_mask):
        return bias_dropout_residual_triton.forward(
            self.x, self.bias, self.residual, self.samples, self.plane, save_mask
        )

    def out_in(self, dtype):
        scaled = (self.x.to(dtype) + self.bias.to(dtype)) * (256 / (256 - THRESHOLD))
        return scaled.where(self.mask != 0, 0.0) + self.residual.to(dtype)


@every_dtype
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 2, 127), (1000, 1, 768), (4097, 2, 100), (2048, 4, 4096)], ids=str)
def test_bias_dropout_residual_is_as_accurate_as_torch(shape, dtype, relative_error):
    case = Hidden(*shape, dtype)
    poison(case.x, case.mask)
    out, mask = case.forward(save_mask=True)
    assert torch.equal(mask, case.mask)
    exact = case.out_in(torch.float64)
    assert relative_error(out, exact) <= 2 * relative_error(case.out_in(dtype), exact)
    poison(case.x)
    rebuilt_out, no_mask = case.forward(save_mask=False)
    assert torch.equal(rebuilt_out, out)
    grads = [
        bias_dropout_residual_triton.backward(case.residual, case.samples, case.plane, saved)
        for saved in (mask, no_mask)
    ]
    scaled = case.residual.float() * (256 / (256 - THRESHOLD))
    assert torch.equal(grads[0], scaled.where(case.mask != 0, 0.0).to(dtype))
    assert torch.equal(grads[0], grads[1])


@every_dtype
def test_bias_dropout_residual_repeats_bitwise(dtype):
    case = Hidden(512, 2, 1024, dtype)
    first, _ = case.forward(save_mask=False)
    for _ in range(RUNS):
        assert torch.equal(case.forward(save_mask=False)[0], first)
