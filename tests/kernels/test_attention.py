"""The flash-style attention op and its torch fallback, against plain fp64 attention with the reference's masks."""

import pytest
import torch
from attention_reference import plain, split

from megaselect.kernels import attention_fallback
from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import Plane
from megaselect.kernels.softmax_dropout import softmax_dropout_value

op = torch.ops.megaselect.fused_attention
backward_op = torch.ops.megaselect.fused_attention_backward
SAMPLES = torch.tensor([3, 2**31 + 5])
SEED = 2**63 + 17


def make_qkv(sequence, groups, shared, head_size, dtype=torch.float64, batch=2):
    return torch.randn(sequence, batch, groups, shared + 2, head_size, dtype=torch.float64).to(dtype)


def gradients(function, qkv, grad_context):
    leaf = qkv.detach().clone().requires_grad_()
    context = function(leaf)
    context.backward(grad_context.to(context.dtype))
    return context.detach(), leaf.grad


CASES = [  # sequence, groups, shared, head size, threshold, offset
    (1, 1, 1, 8, 26, 0),
    (17, 2, 1, 16, 26, 0),
    (130, 3, 1, 20, 0, 0),
    (130, 1, 3, 16, 128, 0),
    (75, 2, 2, 80, 26, 101),
]


@pytest.mark.parametrize(("sequence", "groups", "shared", "head_size", "threshold", "offset"), CASES)
@pytest.mark.parametrize("elements", [1, 3000, 1 << 18])
def test_fp64_is_plain_attention_with_the_reference_masks(
    sequence, groups, shared, head_size, threshold, offset, elements, monkeypatch
):
    monkeypatch.setitem(attention_fallback.ELEMENTS_PER_TILE, "cpu", elements)  # from many tiles to one
    qkv = make_qkv(sequence, groups, shared, head_size)
    plane = Plane(SEED, 4096, threshold, offset, offset)
    grad_context = torch.randn(sequence, 2, groups * shared * head_size, dtype=torch.float64)
    got = gradients(lambda x: fused_attention(x, SAMPLES, plane, scale=0.3), qkv, grad_context)
    exact = gradients(lambda x: plain(*split(x), SAMPLES, plane, 0.3), qkv, grad_context)
    for ours, truth in zip(got, exact, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("row_offset", "column_offset"), [(0, 40), (33, 70), (100, 3), (0, 500)])
def test_other_rows_than_columns_and_rows_that_see_nothing(row_offset, column_offset):
    query = torch.randn(50, 2, 1, 2, 16, dtype=torch.float64)
    key, value = torch.randn(2, 90, 2, 1, 16, dtype=torch.float64)
    plane = Plane(SEED, 4096, 26, row_offset, column_offset)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    exact = plain(*leaves, SAMPLES, plane, 0.3)
    grad_context = torch.randn_like(exact)
    exact_grads = torch.autograd.grad(exact, leaves, grad_context)
    context, log_sum_exp = attention_fallback.forward(query, key, value, SAMPLES, plane, 0.3)
    grads = [torch.full_like(tensor, torch.nan) for tensor in (query, key, value)]
    attention_fallback.backward(
        grad_context, query, key, value, context, log_sum_exp, SAMPLES, plane, 0.3, *grads
    )  # fmt: skip
    for ours, truth in zip((context, *grads), (exact, *exact_grads), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)


def unfused(qkv, plane, scale):
    batch = qkv.shape[1]
    query, key, value = (part.transpose(0, 1) for part in qkv.flatten(1, 2).unbind(2))
    scores = torch.baddbmm(query.new_empty(1, 1, 1), query, key.transpose(1, 2), beta=0, alpha=scale)
    by_sample = (batch, -1)
    return softmax_dropout_value(
        scores.unflatten(0, by_sample), value.unflatten(0, by_sample), SAMPLES, plane, save_probs=False,
        save_mask=False,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threshold", [0, 26])
def test_error_is_at_most_twice_that_of_unfused_attention(dtype, threshold, relative_error):
    qkv = make_qkv(260, 3, 1, 64, dtype)
    plane, scale = Plane(SEED, 4096, threshold), 0.125
    grad_context = torch.randn(260, 2, 3 * 64).to(dtype)
    got = gradients(lambda x: fused_attention(x, SAMPLES, plane, scale=scale), qkv, grad_context)
    baseline = gradients(lambda x: unfused(x, plane, scale), qkv, grad_context)
    exact = gradients(lambda x: plain(*split(x), SAMPLES, plane, scale), qkv.double(), grad_context)
    for ours, theirs, truth in zip(got, baseline, exact, strict=True):
        assert relative_error(ours, truth) <= 2 * relative_error(theirs, truth)


@pytest.mark.parametrize("threshold", [1, 26, 128])
def test_the_masks_are_those_of_unfused_attention(threshold):
    """Equal values of all scores make probs 1/row, and an identity for values makes the context the dropped probs."""
    sequence = 100
    qkv = torch.zeros(sequence, 2, 2, 3, sequence)
    qkv[:, :, :, 2] = torch.eye(sequence)[:, None, None]
    plane = Plane(SEED, 4096, threshold)
    fused, other = fused_attention(qkv, SAMPLES, plane, scale=1.0), unfused(qkv, plane, 1.0)
    assert torch.equal(fused != 0, other != 0)
    kept = (fused.view(sequence, 2, 2, sequence) != 0).sum() / (2 * 2 * sequence * (sequence + 1) / 2)
    assert abs(kept - (1 - threshold / 256)) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0, 26])
def test_bytes_kept_for_backward(dtype, threshold, record_saved):
    qkv = make_qkv(40, 3, 2, 16, dtype).requires_grad_()
    with record_saved() as saved:
        fused_attention(qkv, SAMPLES, Plane(SEED, 4096, threshold), scale=0.3)
    elements, context = 40 * 2 * 3 * 4 * 16, 40 * 2 * 6 * 16
    expected = (elements + context) * dtype.itemsize + 4 * 6 * 2 * 40 + (8 * 2 if threshold else 0)
    assert sum(tensor.nbytes for tensor in saved) == expected
    assert saved[0].data_ptr() == qkv.data_ptr()  # no copy


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_scores_never_exist(direction, peak_bytes):
    def peak(sequence):
        qkv = torch.randn(sequence, 1, 1, 4, 8, requires_grad=direction == "backward")
        plane = Plane(SEED, 4096, 26)

        def run():
            context = fused_attention(qkv, SAMPLES[:1], plane, scale=0.25)
            if direction == "backward":
                context.sum().backward()

        return peak_bytes(run)

    short, long = peak(768), peak(2304)
    assert long < 2 * 2304**2  # the scores of the two heads would take 4 * 2 * 2304**2 bytes
    assert long < 3 * short  # linear at most


def test_nothing_is_kept_without_gradients(record_saved):
    qkv = make_qkv(40, 3, 1, 16, torch.float32).requires_grad_()
    with record_saved() as saved, torch.no_grad():
        context = fused_attention(qkv, SAMPLES, Plane(SEED, 4096, 26), scale=0.3)
    assert saved == []
    assert not context.requires_grad


def test_strided_input():
    wide = make_qkv(40, 3, 1, 32)
    strided = wide[..., ::2]
    plane = Plane(SEED, 4096, 26)
    grad_context = torch.randn(40, 2, 3 * 16, dtype=torch.float64)
    got = gradients(lambda x: fused_attention(x[..., ::2], SAMPLES, plane, scale=0.3), wide, grad_context)
    expected = gradients(lambda x: fused_attention(x, SAMPLES, plane, scale=0.3), strided, grad_context)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1][..., ::2], expected[1])


@pytest.mark.parametrize("threshold", [0, 128])
def test_gradcheck(threshold):
    qkv = make_qkv(5, 1, 2, 3).requires_grad_()
    plane = Plane(SEED, 4096, threshold)
    assert torch.autograd.gradcheck(lambda x: fused_attention(x, SAMPLES, plane, scale=0.5), qkv)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threshold", [0, 26])
def test_opcheck(dtype, threshold):
    qkv = make_qkv(20, 2, 2, 8, dtype)
    scalars = (0.3, 5, 4096, threshold, 0, 0, "torch")
    context, log_sum_exp = op(qkv, SAMPLES, *scalars)
    torch.library.opcheck(backward_op.default, (torch.ones_like(context), qkv, context, log_sum_exp, SAMPLES, *scalars))
    torch.library.opcheck(op.default, (qkv.requires_grad_(), SAMPLES, *scalars))


def test_flops_are_those_of_unfused_attention():
    qkv, plane = make_qkv(40, 3, 1, 16, torch.float32).requires_grad_(), Plane(SEED, 4096, 26)
    counts = []
    for function in (lambda: fused_attention(qkv, SAMPLES, plane, scale=0.3), lambda: unfused(qkv, plane, 0.3)):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            function().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 12 * 2 * 3 * 40**2 * 16
