"""The fused attention kernels, forward and backward, in Triton's interpreter where there is no GPU."""

import pytest
import torch
from attention_reference import plain, split

from megaselect.kernels import attention_fallback
from megaselect.kernels import attention_tiles_triton as tiles
from megaselect.kernels import attention_triton as kernels
from megaselect.kernels.attention import fused_attention
from megaselect.kernels.dropout_mask import Plane

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = torch.tensor([3, 2**31 + 5], device=DEVICE)
SEED, SITE, SCALE = 2**63 + 17, 4096 * 3, 0.3
THRESHOLD = 48  # a multiple of 16: half the random words, which are half of the interpreter's time
SHAPES = [  # rows, columns, batch, groups, queries a group, head size, row offset, column offset
    pytest.param((1, 1, 1, 1, 1, 16, 0, 0), id="one-score"),
    pytest.param((17, 17, 2, 1, 1, 1, 0, 0), id="one-channel"),
    pytest.param((130, 130, 1, 1, 1, 64, 0, 0), id="a-tile-and-a-bit"),
    pytest.param((70, 100, 1, 2, 3, 16, 128, 0), id="grouped-heads"),  # their tiles are full ones and others
    pytest.param((70, 70, 1, 1, 1, 80, 101, 101), id="padded-head-size-and-odd-offset"),
    pytest.param((140, 140, 1, 1, 1, 128, 0, 0), id="largest-head-size"),
    pytest.param((50, 300, 1, 1, 1, 40, 250, 0), id="last-rows"),
    pytest.param((150, 90, 1, 1, 1, 16, 33, 70), id="dead-rows-first"),
]
IN_FP32 = ("one-score", "one-channel", "a-tile-and-a-bit", "padded-head-size-and-odd-offset", "dead-rows-first")


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Tensors that are made without values hold NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def in_nan(tensor):
    """The same values as a view of something larger that is NaN everywhere else."""
    wide = tensor.new_full([*(size + 2 for size in tensor.shape[:-1]), tensor.shape[-1] + 8], torch.nan)
    view = wide[(*(slice(1, 1 + size) for size in tensor.shape[:-1]), slice(0, tensor.shape[-1]))]
    return wide, view.copy_(tensor)


class Case:
    """Random inputs, with NaN around them, and results of the kernels or of anything else with their arguments."""

    def __init__(self, shape, dtype, threshold=THRESHOLD):
        rows, columns, batch, groups, shared, head_size, row_offset, column_offset = shape
        self.plane = Plane(SEED, SITE, threshold, row_offset, column_offset)
        self.samples = SAMPLES[:batch]
        sizes = [(rows, batch, groups, shared, head_size), *[(columns, batch, groups, head_size)] * 2]
        self.inputs = [torch.randn(size).to(dtype).to(DEVICE) for size in sizes]
        self.grad_context = torch.randn(rows, batch, groups * shared * head_size).to(dtype).to(DEVICE)

    def run(self):
        """context, log_sum_exp, grad_query, grad_key, grad_value."""
        inputs = [in_nan(tensor)[1] for tensor in self.inputs]
        context, log_sum_exp = kernels.forward(*inputs, self.samples, self.plane, SCALE)
        around, grads = zip(*(in_nan(torch.full_like(tensor, torch.nan)) for tensor in self.inputs), strict=True)
        kernels.backward(self.grad_context, *inputs, context, log_sum_exp, self.samples, self.plane, SCALE, *grads)
        for wide, grad in zip(around, grads, strict=True):
            assert (~wide.isnan()).sum() == grad.numel()  # nothing written outside
        return context, log_sum_exp, *(grad.clone() for grad in grads)

    def plain_results(self, dtype):
        """context, grad_query, grad_key, grad_value, in `dtype`, of plain attention."""
        leaves = [tensor.to(dtype).requires_grad_() for tensor in self.inputs]
        context = plain(*leaves, self.samples, self.plane, SCALE, dtype)
        return context.detach(), *torch.autograd.grad(context, leaves, self.grad_context.to(dtype))

    def assert_as_exact_as_plain_attention(self, relative_error):
        """Against fp64, results have at most twice the error of plain attention in the inputs' dtype."""
        context, log_sum_exp, *grads = self.run()
        dtype = self.inputs[0].dtype
        exact, baseline = self.plain_results(torch.float64), self.plain_results(dtype)
        for ours, theirs, truth in zip((context, *grads), baseline, exact, strict=True):
            if truth.any():
                assert relative_error(ours, truth) <= 2 * relative_error(theirs, truth) + 1e-7  # of one score: exact
            else:  # of one score: grad_context * value - grad_context * context, and the context was rounded
                assert ours.norm() <= torch.finfo(dtype).eps * self.grad_context.norm() * self.inputs[2].norm()
        fallbacks = attention_fallback.forward(*self.inputs, self.samples, self.plane, SCALE)[1]
        of_scores = (
            torch.finfo(torch.float32).eps * SCALE * self.inputs[0].shape[-1]
        )  # a score sums products of about 1
        torch.testing.assert_close(log_sum_exp, fallbacks, rtol=1e-6, atol=1e-6 + of_scores)


@pytest.fixture
def large_tiles(monkeypatch):
    """In fp32 too: the small ones that it has on a GPU take the interpreter minutes."""
    for kernel, head_size, element_bytes in tiles.HOPPER_TILES:
        monkeypatch.setitem(tiles.HOPPER_TILES, (kernel, head_size, element_bytes), tiles.Tile(64, 64, 4, 1, 1))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(pytest.param(*shape.values, torch.float16, id=f"{shape.id}-fp16") for shape in SHAPES),
        # What depends on the dtype is the size of an access and of a product; groups and last rows do not.
        *(pytest.param(*shape.values, torch.float32, id=f"{shape.id}-fp32") for shape in SHAPES if shape.id in IN_FP32),
    ],
)
def test_error_against_fp64_is_at_most_twice_that_of_plain_attention(shape, dtype, relative_error, request):
    if dtype == torch.float32:
        request.getfixturevalue("large_tiles")
    Case(shape, dtype).assert_as_exact_as_plain_attention(relative_error)


@pytest.mark.parametrize("threshold", [0, 1, 26, 128, 255])
def test_thresholds(threshold, large_tiles):
    case = Case((40, 75, 1, 1, 1, 16, 35, 0), torch.float32, threshold)
    context, _, *grads = case.run()
    for ours, truth in zip((context, *grads), case.plain_results(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threshold", [1, 128])
def test_the_mask_is_the_references_in_both_directions(threshold, large_tiles):
    """Equal scores make probs 1/row; with an identity for the values the context is the dropped probs themselves."""
    size = 100
    case = Case((size, size, 1, 1, 1, size, 0, 0), torch.float32, threshold)
    case.samples = SAMPLES[1:]
    case.inputs[:2] = [torch.zeros_like(tensor) for tensor in case.inputs[:2]]
    case.inputs[2] = torch.eye(size, device=DEVICE)[:, None, None].contiguous()
    case.grad_context = case.inputs[2].flatten(2).contiguous()
    context, _, _, _, grad_value = case.run()
    exact = case.plain_results(torch.float64)
    assert torch.equal(context != 0, exact[0] != 0)
    assert torch.equal(grad_value != 0, exact[3] != 0)
    assert 0 < (context != 0).sum() < size * (size + 1) / 2


def test_what_the_cache_holds_changes_no_bit(monkeypatch, large_tiles):
    case = Case((70, 70, 1, 3, 1, 16, 0, 0), torch.float16, threshold=0)
    wanted = case.run()
    for together in (1, 2):
        monkeypatch.setattr(tiles, "CACHE_BYTES", together * 2 * 70 * 16 * 2)
        assert tiles.planes_together(3, case.inputs[1]) == together
        assert all(torch.equal(got, want) for got, want in zip(case.run(), wanted, strict=True))


@pytest.mark.parametrize(
    ("head_size", "sequence", "dtype"), [(16, 140, torch.float16), (128, 140, torch.float16), (16, 70, torch.float32)]
)
def test_tiles_of_other_architectures(head_size, sequence, dtype, monkeypatch, relative_error):
    monkeypatch.setattr(tiles, "_capability", lambda: 80)
    Case((sequence, sequence, 1, 1, 1, head_size, 0, 0), dtype).assert_as_exact_as_plain_attention(relative_error)


def test_every_tile_lies_on_the_masks_grid():
    for table in (tiles.HOPPER_TILES, tiles.AMPERE_TILES):
        assert len(table) == 3 * 4 * 2
        assert all(tile.rows % 16 == 0 and tile.columns % 64 == 0 for tile in table.values())


@pytest.mark.parametrize(("batch", "groups", "head_size"), [(1, 2, 16), (2, 1, 7)])
def test_the_op_reads_and_writes_packed_tensors(batch, groups, head_size, large_tiles):
    """Also where rows allow no 16-byte access."""
    qkv = torch.randn(70, batch, groups, 3, head_size, device=DEVICE).requires_grad_()
    plane = Plane(SEED, SITE, THRESHOLD)
    results = []
    for backend in ("triton", "torch"):
        context = fused_attention(qkv, SAMPLES[:batch], plane, scale=SCALE, backend=backend)
        results.append((context, *torch.autograd.grad(context, qkv, torch.ones_like(context))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_where_nothing_is_live_all_results_are_zero():
    for rows, columns, batch, offset in [(0, 4, 1, 0), (4, 0, 1, 0), (4, 4, 0, 0), (0, 0, 1, 0), (30, 40, 1, 500)]:
        case = Case((rows, columns, batch, 1, 1, 16, 0, offset), torch.float32)
        context, log_sum_exp, *grads = case.run()
        assert all(not tensor.any() for tensor in (context, *grads))
        assert (log_sum_exp == torch.inf).all()


def refused(**changes):
    arguments = {"dtypes": [torch.float32] * 3, "head_size": 16, "scale": 1.0, "step": 1, **changes}
    qkv = torch.zeros(4, 1, 1, 3, arguments["head_size"] * arguments["step"], device=DEVICE)[..., :: arguments["step"]]
    parts = [part.to(dtype) for part, dtype in zip(split(qkv), arguments["dtypes"], strict=True)]
    return lambda: kernels.forward(*parts, SAMPLES[:1], Plane(SEED, SITE, 26), arguments["scale"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            refused(head_size=129),
            r"head size 129 .* is outside of 1 to 128: use --attention unfused or --kernel-backend",
        ),
        (refused(dtypes=[torch.float32, torch.float16, torch.float32]), "must have one dtype of"),
        (refused(dtypes=[torch.float64] * 3), "must have one dtype of"),
        (refused(scale=0.0), "scale = 0.0 must be positive and finite"),
        (refused(scale=float("nan")), "scale = nan must be positive and finite"),
        (refused(step=2), "the last must be 1: make it contiguous"),
    ],
)
def test_what_the_kernels_cannot_do_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
