"""The bias + dropout + residual kernels, to the bit, in Triton's interpreter where there is no GPU."""

import pytest
import torch
from mask_reference import dropped

from megaselect.kernels import bias_dropout_residual_triton as kernels
from megaselect.kernels.dropout_mask import Plane

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED, SITE, THRESHOLD = 0x8000000180000001, 2**31 - 1, 26
HALF_THE_WORDS = 48  # a multiple of 16: half the random words, which are half of the interpreter's time
SHAPES = [  # rows, batch, columns, row offset, column offset
    pytest.param((20, 2, 72), (0, 0), id="ragged"),
    pytest.param((1, 1, 1), (0, 0), id="one-element"),
    pytest.param((3, 1, 530), (32, 64), id="several-tiles"),
    pytest.param((17, 2, 64), (9, 24), id="offsets-aligned-to-8"),
    pytest.param((18, 1, 70), (3, 13), id="odd-offsets"),
]
IN_FP16 = ("ragged", "offsets-aligned-to-8")
every_case = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])


def inputs(shape, offsets, dtype, threshold=THRESHOLD):
    generator = torch.Generator().manual_seed(sum(shape))
    x, residual = (torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for _ in range(2))
    bias = torch.randn(shape[-1], generator=generator).to(dtype).to(DEVICE)
    values = [2**32 + 4, 11][: shape[1]]
    drop = [dropped(SEED, sample, SITE, threshold, shape[0], shape[2], *offsets) for sample in values]
    keep = ~torch.stack([torch.from_numpy(mask) for mask in drop], dim=1).to(DEVICE)
    return x, bias, residual, torch.tensor(values, device=DEVICE), Plane(SEED, SITE, threshold, *offsets), keep


@pytest.mark.parametrize(
    ("shape", "offsets", "dtype"),
    [
        *(pytest.param(*shape.values, torch.float32, id=f"{shape.id}-fp32") for shape in SHAPES),
        # The dtype changes the size of an access alone.
        *(pytest.param(*shape.values, torch.float16, id=f"{shape.id}-fp16") for shape in SHAPES if shape.id in IN_FP16),
    ],
)
def test_bits_with_and_without_a_saved_mask(shape, offsets, dtype):
    threshold = HALF_THE_WORDS if dtype == torch.float32 else THRESHOLD
    x, bias, residual, samples, plane, keep = inputs(shape, offsets, dtype, threshold)
    scale = 256 / (256 - threshold)
    expected = (((x.float() + bias.float()) * scale).where(keep, 0.0) + residual.float()).to(dtype)
    for save_mask in (True, False):
        out, mask = kernels.forward(x, bias, residual, samples, plane, save_mask)
        assert torch.equal(out, expected)
        if save_mask:
            assert torch.equal(mask, -keep.to(torch.int8))
        else:
            assert mask.numel() == 0
        grad_x = kernels.backward(residual, samples, plane, mask)
        assert torch.equal(grad_x, (residual.float() * scale).where(keep, 0.0).to(dtype))


@every_case
def test_bias_and_residual_may_be_absent(dtype):
    x, bias, residual, samples, plane, keep = inputs((17, 1, 40), (0, 0), dtype)
    scale = 256 / (256 - THRESHOLD)
    only_dropout, _ = kernels.forward(x, None, None, samples, plane, False)
    assert torch.equal(only_dropout, (x.float() * scale).where(keep, 0.0).to(dtype))
    with_bias, _ = kernels.forward(x, bias, None, samples, plane, False)
    assert torch.equal(with_bias, ((x.float() + bias.float()) * scale).where(keep, 0.0).to(dtype))
    with_residual, _ = kernels.forward(x, None, residual, samples, plane, False)
    assert torch.equal(with_residual, ((x.float() * scale).where(keep, 0.0) + residual.float()).to(dtype))


def test_threshold_0_only_adds():
    x, bias, residual, samples, plane, _ = inputs((17, 2, 40), (0, 0), torch.float32, threshold=0)
    out, mask = kernels.forward(x, bias, residual, samples, plane, False)
    assert torch.equal(out, x + bias + residual)
    assert torch.equal(kernels.backward(x, samples, plane, mask), x)


def test_strided_bias_and_residual():
    x, bias, residual, samples, plane, _ = inputs((16, 2, 64), (0, 0), torch.float32)
    plain, _ = kernels.forward(x, bias, residual, samples, plane, False)
    strided_bias = torch.stack([bias, bias], 1)[:, 0]
    strided_residual = residual.transpose(0, 2).contiguous().transpose(0, 2)
    strided, _ = kernels.forward(x, strided_bias, strided_residual, samples, plane, False)
    assert torch.equal(strided, plain)


def test_a_batch_of_2_equals_two_batches_of_1():
    x, bias, residual, samples, plane, _ = inputs((16, 2, 64), (0, 0), torch.float16)
    together, _ = kernels.forward(x, bias, residual, samples, plane, False)
    for k in range(2):
        alone, _ = kernels.forward(
            x[:, k : k + 1].contiguous(), bias, residual[:, k : k + 1], samples[k : k + 1], plane, False
        )
        assert torch.equal(alone, together[:, k : k + 1])
