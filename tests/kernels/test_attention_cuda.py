"""The fused attention kernels on a real GPU: accuracy, masks, repeatability, poisoned memory, memory, large sizes."""

import os

import pytest
import torch
from attention_reference import plain, split
from on_cuda import fresh_inputs, poison  # noqa: F401  the fixture serves every test here

from megaselect.kernels import attention_triton as kernels
from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import Plane

pytestmark = pytest.mark.cuda

SITE, SCALE, RUNS = 7 * 4096, 0.125, 250
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"]
)
LENGTHS = [1, 17, 127, 1000, 1024]
HEAD_SIZES = [16, 40, 64, 80, 96, 120, 128]


class Case:
    """Random packed queries, keys and values, and the gradient of the context."""

    def __init__(self, sequence, batch, groups, shared, head_size, dtype, threshold=26):
        self.qkv = torch.randn(sequence, batch, groups, shared + 2, head_size, device="cuda").to(dtype)
        self.grad_context = torch.randn(sequence, batch, groups * shared * head_size, device="cuda").to(dtype)
        self.samples = torch.randint(0, 2**40, (batch,), device="cuda")
        self.plane = Plane(int.from_bytes(os.urandom(8), "little"), SITE, threshold)

    def run(self):
        """(context, grad_qkv) of the op."""
        qkv = self.qkv.detach().requires_grad_()
        poison(self.grad_context, self.qkv)
        context = fused_attention(qkv, self.samples, self.plane, scale=SCALE)
        poison(self.qkv)
        return context.detach(), *torch.autograd.grad(context, qkv, self.grad_context)

    def run_plain(self, dtype):
        """The same of plain attention in `dtype`, with the reference's masks."""
        qkv = self.qkv.to(dtype, copy=True).requires_grad_()
        context = plain(*split(qkv), self.samples, self.plane, SCALE, dtype)
        return context.detach(), *torch.autograd.grad(context, qkv, self.grad_context.to(dtype))


@every_dtype
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("threshold", [0, 26])
def test_error_is_at_most_twice_that_of_plain_attention(length, threshold, dtype, relative_error):
    case = Case(length, 2, 2, 1, 64, dtype, threshold)
    assert_as_accurate_as_plain_attention(case, dtype, relative_error)


@every_dtype
@pytest.mark.parametrize("head_size", HEAD_SIZES)
def test_every_head_size(head_size, dtype, relative_error):
    case = Case(300, 1, 2, 1, head_size, dtype)
    assert_as_accurate_as_plain_attention(case, dtype, relative_error)


@pytest.mark.parametrize("head_size", [64, 128])
def test_grouped_heads_and_a_long_sequence(head_size, relative_error):
    assert_as_accurate_as_plain_attention(
        Case(4097, 1, 1, 3, head_size, torch.bfloat16), torch.bfloat16, relative_error
    )


def assert_as_accurate_as_plain_attention(case, dtype, relative_error):
    results = zip(case.run(), case.run_plain(dtype), case.run_plain(torch.float64), strict=True)
    for ours, theirs, truth in results:
        floor = torch.finfo(dtype).eps if case.qkv.shape[0] == 1 else 0  # of one score the scores' gradient is 0
        assert relative_error(ours, truth) <= 2 * relative_error(theirs, truth) + floor


@pytest.mark.parametrize("threshold", [1, 26, 32, 128])
def test_the_mask_is_the_references_in_both_directions(threshold):
    """Equal scores make probs 1/row; with an identity for the values the context is the dropped probs themselves."""
    size = 128
    case = Case(size, 2, 2, 1, size, torch.bfloat16, threshold)
    case.qkv[:, :, :, :2] = 0
    case.qkv[:, :, :, 2] = torch.eye(size, device="cuda")[:, None, None]
    case.grad_context = case.qkv[:, :, :, 2].flatten(2).contiguous()
    (context, grad), (exact, exact_grad) = case.run(), case.run_plain(torch.float64)
    assert torch.equal(context != 0, exact != 0)
    assert torch.equal(grad[:, :, :, 2] != 0, exact_grad[:, :, :, 2] != 0)


@every_dtype
@pytest.mark.parametrize("head_size", [64, 128])
def test_repeats_bitwise(head_size, dtype):
    case = Case(1024, 2, 4, 1, head_size, dtype)
    wanted = case.run()
    for _ in range(RUNS if dtype != torch.float32 else 10):
        assert all(torch.equal(got, want) for got, want in zip(case.run(), wanted, strict=True))


def test_head_halves_with_an_offset_equal_the_whole():
    case = Case(1000, 1, 4, 1, 64, torch.bfloat16)
    context, _ = kernels.forward(*split(case.qkv), case.samples, case.plane, SCALE)
    for first in (0, 2):
        part = case.qkv[:, :, first : first + 2]
        plane = case.plane._replace(site=SITE + first)
        here, _ = kernels.forward(*split(part), case.samples, plane, SCALE)
        assert torch.equal(here, context[..., first * 64 : (first + 2) * 64])


def test_scores_never_exist():
    case = Case(16384, 1, 8, 1, 128, torch.bfloat16)
    case.run()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    context = fused_attention(case.qkv.requires_grad_(), case.samples, case.plane, scale=SCALE)
    context.backward(case.grad_context)
    held = torch.cuda.max_memory_allocated() - before
    assert held < 3 * case.qkv.nbytes  # the scores would take 8 * 16384**2 * 2 bytes: 40 times as much


def test_above_2_to_the_31_elements():
    """The last sample of a tensor with more elements than an int32 counts equals the sample alone."""
    gib_needed = 40
    if torch.cuda.mem_get_info()[0] < gib_needed * 2**30:
        pytest.skip(f"needs {gib_needed} GiB of free GPU memory")
    qkv = torch.randn(4096, 22, 32, 3, 64, device="cuda", dtype=torch.bfloat16).repeat(1, 4, 1, 1, 1)
    assert qkv.numel() > 2**31
    samples, plane = torch.arange(88, device="cuda"), Plane(1234, SITE, 26)
    whole, _ = kernels.forward(*split(qkv), samples, plane, SCALE)
    alone, _ = kernels.forward(*split(qkv[:, -1:].contiguous()), samples[-1:], plane, SCALE)
    assert torch.equal(whole[:, -1:], alone)
