"""The output product and cross-entropy in chunks of tokens, against the product followed by torch's cross-entropy."""

import pytest
import torch
import torch.nn.functional as F

from megaselect.kernels.cross_entropy import cross_entropy
from megaselect.kernels.linear_cross_entropy import linear_cross_entropy

TOKENS, HIDDEN, PADDED, VOCABULARY = 37, 24, 128, 101
op = torch.ops.megaselect.linear_cross_entropy
backward_op = torch.ops.megaselect.linear_cross_entropy_backward
every_chunk = pytest.mark.parametrize("chunk", [1, 8, 37, 1000])


def make_inputs(dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype)
    weight = torch.randn(PADDED, HIDDEN, generator=generator).to(dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[-1] = VOCABULARY - 1
    return hidden, weight, targets


def run(function, hidden, weight, targets, dtype=None):
    """(loss, grads of hidden and weight): of three times the loss, so that the incoming gradient is not 1."""
    leaves = [tensor.to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in (hidden, weight)]
    loss = function(*leaves, targets)
    (3 * loss).backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


def ours(chunk):
    return lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets, VOCABULARY, chunk)


def torchs(hidden, weight, targets):
    return F.cross_entropy((hidden @ weight.t())[:, :VOCABULARY], targets)


def whole(hidden, weight, targets):
    return cross_entropy(F.linear(hidden, weight), targets, VOCABULARY)


@every_chunk
def test_fp64_is_that_of_torch(chunk):
    inputs = make_inputs(torch.float64, chunk)
    for got, exact in zip(run(ours(chunk), *inputs), run(torchs, *inputs), strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


@every_chunk
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_that_of_the_two_ops(chunk, dtype, relative_error):
    inputs = make_inputs(dtype, chunk)
    exact = run(torchs, *inputs, dtype=torch.float64)
    for got, of_two_ops, truth in zip(run(ours(chunk), *inputs), run(whole, *inputs), exact, strict=True):
        assert got.dtype == of_two_ops.dtype
        assert relative_error(got, truth) <= 2 * relative_error(of_two_ops, truth) + torch.finfo(got.dtype).eps


def test_padding_gets_no_gradient():
    hidden, weight, targets = make_inputs(torch.float32, 0)
    _, _, grad_weight = run(ours(8), hidden, weight, targets)
    assert not grad_weight[VOCABULARY:].any()
    assert grad_weight[:VOCABULARY].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_logits_are_kept(dtype, record_saved):
    hidden, weight, targets = make_inputs(dtype, 1)
    with record_saved() as saved:
        ours(8)(hidden.requires_grad_(), weight.requires_grad_(), targets)
    kept = sum(tensor.nbytes for tensor in saved if tensor.data_ptr() != weight.data_ptr())
    assert kept == TOKENS * (HIDDEN * dtype.itemsize + 8 + 4)


def test_memory_grows_by_a_chunks_logits(peak_bytes):
    def peak(tokens, chunk):
        hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
        weight = torch.randn(PADDED, HIDDEN, requires_grad=True)
        targets = torch.zeros(tokens, dtype=torch.int64)
        return peak_bytes(lambda: linear_cross_entropy(hidden, weight, targets, VOCABULARY, chunk).backward())

    row = PADDED * 4
    assert peak(4096, 1024) - peak(4096, 64) >= 900 * row  # so the measurement sees logits
    growth = peak(4096, 64) - peak(1024, 64)
    assert growth <= 3072 * (2 * HIDDEN * 4 + 32)  # hidden's gradient (twice while it is accumulated), numbers a token


def test_gradcheck():
    hidden, weight, targets = make_inputs(torch.float64, 3)
    leaves = hidden[:5, :4].clone().requires_grad_(), weight[:, :4].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *tensors: ours(2)(*tensors, targets[:5]), leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    hidden, weight, targets = make_inputs(dtype, 4)
    loss, log_sum_exp = op(hidden, weight, targets, VOCABULARY, 8)
    arguments = (torch.ones_like(loss), hidden, weight, targets, log_sum_exp, VOCABULARY, 8)
    torch.library.opcheck(backward_op.default, arguments)
    torch.library.opcheck(op.default, (hidden.requires_grad_(), weight.requires_grad_(), targets, VOCABULARY, 8))
