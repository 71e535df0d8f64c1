"""Forward and backward of the softmax + dropout kernels, in Triton's interpreter where there is no GPU."""

import numpy as np
import pytest
import torch
from mask_reference import dropped_planes

from megaselect.kernels import softmax_dropout_triton as kernels
from megaselect.kernels.dropout_mask import Plane

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED, SITE, THRESHOLD = 2**64 - 3, 5 * 4096 + 2, 26
HALF_THE_WORDS = 48  # a multiple of 16: half the random words, which are half of the interpreter's time
FORMS = {"none": (True, True), "dropout": (True, False), "softmax": (False, True), "softmax+dropout": (False, False)}
SHAPES = [  # batch, heads, rows, columns, row offset, column offset
    pytest.param((2, 2, 9, 24, 0, 0), id="two-samples-two-heads"),
    pytest.param((1, 1, 1, 1, 0, 0), id="one-score"),
    pytest.param((1, 1, 17, 127, 110, 0), id="last-rows-unaligned"),
    pytest.param((1, 1, 4, 600, 300, 0), id="several-chunks"),
    pytest.param((1, 1, 20, 40, 5, 24), id="offsets-aligned-to-8"),
    pytest.param((1, 1, 13, 50, 3, 13), id="odd-offsets-and-dead-rows"),
    pytest.param((1, 1, 16, 300, 16, 64), id="all-rows-dead"),
]
DTYPES = [torch.float32, torch.float16]


class Case:
    """Random inputs, the mask and liveness of every element, and the exact probs in fp64."""

    def __init__(self, shape, dtype, threshold=THRESHOLD):
        batch, heads, rows, columns, row_offset, column_offset = shape
        self.shape = (batch, heads, rows, columns)
        generator = torch.Generator().manual_seed(rows * 1000 + columns)
        self.scores = (3 * torch.randn(self.shape, generator=generator)).to(dtype).to(DEVICE)
        self.grad = torch.randn(self.shape, generator=generator).to(dtype).to(DEVICE)
        self.delta = torch.randn(self.shape[:-1], generator=generator).to(DEVICE)
        values = [2**32 - 1, 6][:batch]
        self.samples = torch.tensor(values, device=DEVICE)
        self.plane = Plane(SEED, SITE, threshold, row_offset, column_offset)
        drop = dropped_planes(SEED, values, SITE, heads, threshold, rows, columns, row_offset, column_offset)
        self.live = torch.from_numpy(
            column_offset + np.arange(columns)[None, :] <= row_offset + np.arange(rows)[:, None]
        ).to(DEVICE)
        self.keep = ~torch.from_numpy(drop).to(DEVICE) & self.live
        masked = self.scores.double().masked_fill(~self.live, -torch.inf)
        self.probs = torch.softmax(masked, -1).nan_to_num(0.0)  # NaN: a row without a live column

    def forward(self, form):
        return kernels.forward(self.scores, self.samples, self.plane, *FORMS[form])

    def backward(self, form, saved):
        """With NaN wherever grad is dead, and only what `form` stores."""
        _, row_max, inverse_sum, probs, mask = saved
        save_probs, _ = FORMS[form]
        empty = self.scores.new_empty(0)
        return kernels.backward(
            self.grad.masked_fill(~self.live, torch.nan),
            self.delta,
            self.samples,
            self.plane,
            scores=empty if save_probs else self.scores.masked_fill(~self.live, torch.nan),
            row_max=empty if save_probs else row_max,
            inverse_sum=empty if save_probs else inverse_sum,
            probs=probs,
            mask=mask,
            write_dropped=True,
        )


ALL_CASES = [pytest.param((shape.values[0], dtype), id=f"{shape.id}-{dtype}") for shape in SHAPES for dtype in DTYPES]
# The eight launches of all forms are long in the interpreter: fp16 where chunks and 16-byte accesses depend on it, and
# all forms where these (in fp32) or single elements are read; elsewhere what saves everything and what saves nothing.
IN_ALL_FORMS = ("several-chunks-torch.float32", "offsets-aligned-to-8-torch.float32", "odd-offsets")
IN_FP16 = ("several-chunks", "offsets-aligned")
FORM_CASES = []
for case in ALL_CASES:
    if case.values[0][1] == torch.float32 or case.id.startswith(IN_FP16):
        in_all = case.id.startswith(IN_ALL_FORMS)
        FORM_CASES.append(pytest.param(*case.values, FORMS if in_all else ("none", "softmax+dropout"), id=case.id))
        if not in_all:
            FORM_CASES.append(pytest.param(*case.values, FORMS, id=f"{case.id}-all-forms", marks=pytest.mark.soak))


@pytest.mark.parametrize("case", ALL_CASES)
def test_forward_against_fp64(case, relative_error):
    case = Case(*case)
    dropped, row_max, inverse_sum, probs, mask = case.forward("none")
    masked = case.scores.float().masked_fill(~case.live, -torch.inf)
    assert torch.equal(row_max, masked.amax(-1).nan_to_num(neginf=0.0))
    assert torch.equal(mask, -case.keep.to(torch.int8))
    assert torch.equal(dropped, probs * case.keep)
    assert torch.equal(probs == 0, probs.masked_fill(~case.live, 0) == 0)
    exact_sum = torch.where(case.live.any(-1), 1 / (masked.double() - row_max[..., None].double()).exp().sum(-1), 0)
    if not case.live.any():
        assert not probs.any()
        assert not inverse_sum.any()
        return
    torch_probs = torch.softmax(masked.to(case.scores.dtype), -1).nan_to_num(0.0)
    assert relative_error(inverse_sum, exact_sum) < 1e-6
    assert relative_error(probs, case.probs) <= 2 * relative_error(torch_probs, case.probs)


@pytest.mark.parametrize(("case", "forms"), FORM_CASES)
def test_every_storage_form_gives_the_same_bits(case, forms):
    dtype = case[1]
    case = Case(*case, threshold=HALF_THE_WORDS if dtype == torch.float32 else THRESHOLD)
    saved = {form: case.forward(form) for form in forms}
    for form, (dropped, row_max, inverse_sum, probs, mask) in saved.items():
        for got, wanted in zip((dropped, row_max, inverse_sum), saved["none"][:3], strict=True):
            assert torch.equal(got, wanted), form
        assert (probs.numel() > 0, mask.numel() > 0) == FORMS[form]
        assert not probs.numel() or torch.equal(probs, saved["none"][3])
        assert not mask.numel() or torch.equal(mask, saved["none"][4])
    probs = saved["none"][3].float()
    grad = case.grad.float().where(case.keep, 0.0)
    expected = (probs * (grad - case.delta[..., None])).to(case.grad.dtype)  # IEEE arithmetic: the very bits
    for form in forms:
        grad_scores, dropped = case.backward(form, saved[form])
        assert torch.equal(grad_scores, expected), form
        assert torch.equal(dropped, saved["none"][0]), form


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp16"])
def test_without_dropout_the_dropped_probs_are_the_probs(dtype):
    case = Case((1, 2, 24, 40, 16, 0), dtype, threshold=0)
    dropped, row_max, inverse_sum, *_ = case.forward("softmax+dropout")
    assert torch.allclose(dropped.double(), case.probs, atol=2 * torch.finfo(dtype).eps, rtol=0)
    grads = []
    for probs in (dropped, dropped.new_empty(0)):
        grad_scores, recomputed = kernels.backward(
            case.grad.masked_fill(~case.live, torch.nan),
            case.delta,
            case.samples,
            case.plane,
            scores=case.scores,
            row_max=row_max,
            inverse_sum=inverse_sum,
            probs=probs,
            mask=dropped.new_empty(0, dtype=torch.int8),
            write_dropped=True,
        )
        assert torch.equal(recomputed, dropped)
        grads.append(grad_scores)
    assert torch.equal(grads[0], (dropped.float() * (case.grad.float() - case.delta[..., None])).to(dtype))
    assert torch.equal(grads[0], grads[1])


def test_backward_overwrites_the_gradient_it_is_given():
    case = Case((1, 1, 16, 16, 0, 0), torch.float32)
    _, row_max, inverse_sum, *_ = case.forward("softmax+dropout")
    empty = case.scores.new_empty(0)
    grad_scores, dropped = kernels.backward(
        case.grad,
        case.delta,
        case.samples,
        case.plane,
        scores=case.scores,
        row_max=row_max,
        inverse_sum=inverse_sum,
        probs=empty,
        mask=empty.to(torch.int8),
        write_dropped=False,
    )
    assert grad_scores.data_ptr() == case.grad.data_ptr()
    assert dropped.numel() == 0


def test_head_halves_with_an_offset_equal_the_whole():
    case = Case((1, 4, 4, 32, 28, 0), torch.float16)
    whole = case.forward("none")
    for first in (0, 2):
        plane = case.plane._replace(site=case.plane.site + first)
        half = kernels.forward(case.scores[:, first : first + 2].contiguous(), case.samples, plane, True, True)
        for got, wanted in zip(half, whole, strict=True):
            assert torch.equal(got, wanted[:, first : first + 2])


def test_rows_from_an_offset_equal_the_same_rows_of_the_whole():
    case = Case((1, 1, 40, 40, 0, 0), torch.float16)
    whole = case.forward("none")
    part = kernels.forward(
        case.scores[:, :, 19:].contiguous(), case.samples, case.plane._replace(row_offset=19), True, True
    )
    for got, wanted in zip(part, whole, strict=True):
        assert torch.equal(got, wanted[:, :, 19:])


def test_a_not_finite_score_is_not_hidden():
    case = Case((1, 1, 16, 16, 0, 0), torch.float32)
    case.scores[0, 0, 4, 2] = torch.nan
    dropped, *_, mask = case.forward("none")
    assert dropped[0, 0, 4, :5].isnan().all()
    assert torch.equal(mask, -case.keep.to(torch.int8))
    assert not dropped[0, 0, :4].isnan().any()
    assert not dropped[0, 0, 5:].isnan().any()


def test_an_empty_batch_launches_nothing():
    scores = torch.empty(0, 2, 16, 16, device=DEVICE)
    dropped, *_ = kernels.forward(scores, torch.empty(0, dtype=torch.int64, device=DEVICE), Plane(1, 2, 26), True, True)
    assert dropped.shape == scores.shape
