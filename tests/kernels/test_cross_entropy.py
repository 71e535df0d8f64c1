"""Cross-entropy over a padded vocabulary on a CPU, against torch's own over the real columns."""

import pytest
import torch
import torch.nn.functional as F

from megaselect.kernels.cross_entropy import ELEMENTS_PER_CHUNK, cross_entropy

SHAPES = [(1, 1, 1), (1, 8, 5), (17, 33, 33), (40, 128, 101)]  # tokens, padded vocabulary, vocabulary
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
op = torch.ops.megaselect.cross_entropy
backward_op = torch.ops.megaselect.cross_entropy_backward


def make_inputs(shape, dtype, poison=1e4):
    """(logits [n, V] whose padding holds `poison`, targets [n])."""
    tokens, padded, vocabulary = shape
    generator = torch.Generator().manual_seed(tokens)
    logits = (4 * torch.randn(tokens, padded, generator=generator)).to(dtype)
    logits[:, vocabulary:] = poison
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    targets[-1] = vocabulary - 1
    return logits, targets


def ours(logits, targets, vocabulary):
    return cross_entropy(logits, targets, vocabulary)


def torchs(logits, targets, vocabulary):
    return F.cross_entropy(logits[:, :vocabulary], targets)


def run(function, logits, targets, vocabulary, dtype=None):
    """(loss, grad of logits): of three times the loss, so that the incoming gradient is not 1."""
    leaf = logits.to(dtype or logits.dtype, copy=True).requires_grad_()
    loss = function(leaf, targets, vocabulary)
    (3 * loss).backward()
    return loss.detach(), leaf.grad


@every_shape
@pytest.mark.parametrize("poison", [1e4, -1e4, torch.inf, torch.nan])
def test_fp64_is_that_of_torch_whatever_the_padding_holds(shape, poison):
    logits, targets = make_inputs(shape, torch.float64, poison)
    loss, grad = run(ours, logits, targets, shape[2])
    exact_loss, exact_grad = run(torchs, logits, targets, shape[2])
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, exact_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-12, atol=1e-12)
    assert torch.equal(grad[:, shape[2] :], torch.zeros(shape[0], shape[1] - shape[2], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_error_in_narrower_types(shape, dtype, relative_error):
    logits, targets = make_inputs(shape, dtype)
    loss, grad = run(ours, logits, targets, shape[2])
    exact_loss, exact_grad = run(torchs, logits, targets, shape[2], torch.float64)
    assert (loss.dtype, grad.dtype) == (torch.float32, dtype)
    assert relative_error(loss, exact_loss) <= 1e-6  # fp32 arithmetic whatever the logits are
    assert relative_error(grad, exact_grad) <= max(1e-6, torch.finfo(dtype).eps)
    assert not grad[:, shape[2] :].any()


def test_large_fp16_logits():
    logits = torch.tensor([[65504.0, -65504.0, 0.0], [-65504.0, 65504.0, 65504.0]], dtype=torch.float16)
    loss, grad = run(ours, logits, torch.tensor([0, 0]), 3)
    assert loss == 65504.34375  # (0 + 2 * 65504 + log 2) / 2, to fp32's spacing there
    wanted = torch.tensor([[0.0, 0.0, 0.0], [-1.5, 0.75, 0.75]], dtype=torch.float16)
    torch.testing.assert_close(grad, wanted, rtol=5e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 300, 128 * 7])
def test_many_chunks_are_one(dtype, elements, monkeypatch):
    logits, targets = make_inputs((40, 128, 101), dtype)
    assert ELEMENTS_PER_CHUNK["cpu"] >= logits.numel()
    wanted = run(ours, logits, targets, 101)
    monkeypatch.setitem(ELEMENTS_PER_CHUNK, "cpu", elements)
    for got, one_chunk in zip(run(ours, logits, targets, 101), wanted, strict=True):
        tolerance = 4 * torch.finfo(got.dtype).eps  # vector and scalar exp2 differ in the last bit
        torch.testing.assert_close(got, one_chunk, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_kept_for_backward(dtype, record_saved):
    logits, targets = make_inputs((40, 128, 101), dtype)
    with record_saved() as saved:
        ours(logits.requires_grad_(), targets, 101)
    statistic = 8 if dtype == torch.float64 else 4
    assert sum(tensor.nbytes for tensor in saved) == 40 * (128 * dtype.itemsize + 8 + statistic)
    assert logits.data_ptr() in {tensor.data_ptr() for tensor in saved}  # no copy of the logits


def test_nothing_is_kept_without_gradients(record_saved):
    logits, targets = make_inputs((40, 128, 101), torch.float32)
    with record_saved() as saved, torch.no_grad():
        loss = ours(logits.requires_grad_(), targets, 101)
    assert saved == []
    assert not loss.requires_grad


def test_the_gradient_is_written_over_the_logits():
    logits, targets = make_inputs((40, 128, 101), torch.bfloat16)
    inner = logits.requires_grad_() * 1  # not a leaf, as what a product makes
    address = inner.data_ptr()
    addresses = []
    inner.register_hook(lambda grad: addresses.append(grad.data_ptr()))
    ours(inner, targets, 101).backward()
    assert addresses == [address]


def test_a_second_backward_says_that_the_logits_are_gone():
    logits, targets = make_inputs((5, 8, 6), torch.float32)
    loss = ours(logits.requires_grad_() * 1, targets, 6)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    logits, targets = make_inputs((5, 8, 6), dtype)
    loss, log_sum_exp = op(logits, targets, 6)
    torch.library.opcheck(backward_op.default, (torch.ones_like(loss), logits, targets, log_sum_exp, 6))
    torch.library.opcheck(op.default, (logits.requires_grad_(), targets, 6))


def test_compiled_gives_the_same_bits():
    logits, targets = make_inputs((40, 128, 101), torch.float32)

    def of_a_result(logits, targets, vocabulary):
        return ours(logits * 1, targets, vocabulary)  # as in a model; torch 2.11 compiles no write into a leaf

    compiled = torch.compile(of_a_result, fullgraph=True, backend="aot_eager")
    for got, wanted in zip(run(compiled, logits, targets, 101), run(ours, logits, targets, 101), strict=True):
        assert torch.equal(got, wanted)
