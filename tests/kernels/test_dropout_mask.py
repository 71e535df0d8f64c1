"""The CPU's dropout mask, bit by bit against the published vectors and the element-by-element reference."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_reference import dropped, dropped_planes

from megaselect.kernels import dropout_mask
from megaselect.kernels.dropout_mask import (
    Plane,
    drop_mask,
    drop_threshold,
    keep_hidden,
    keep_planes,
    keep_scale,
    signed_seed,
    unsigned_seed,
)
from megaselect.kernels.dropout_mask_numpy import philox

VECTORS = json.loads(Path(__file__).with_name("dropout_mask_vectors.json").read_text())
SEED = 0xDEADBEEFCAFEF00D  # both 32-bit halves have their highest bit set
any_example = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**64 - 1)
samples = st.integers(0, 2**33)  # a sample counts modulo 2**32
sites = st.integers(0, 2**31 - 4)
thresholds = st.integers(0, 255)
sizes = st.integers(1, 150)
offsets = st.integers(0, 300)


@pytest.fixture(autouse=True, scope="module", params=["numba", "numpy"])
def who_fills(request):
    """With the package numba, and as if it were not there."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "numpy":
            patch.setattr(dropout_mask, "has_numba", lambda: False)
        yield


def as_keep(mask: np.ndarray) -> torch.Tensor:
    """The int8 keep mask (-1 kept, 0 dropped) of a reference mask."""
    return torch.from_numpy(mask.astype(np.int8) - 1)


def test_philox_known_answers():
    zero, full = np.zeros((1, 1), np.uint64), np.full((1, 1), 0xFFFFFFFF, np.uint64)
    words = [int(word.item()) for word in philox(zero, zero, zero, zero, 0)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = [int(word.item()) for word in philox(full, full, full, full, 2**64 - 1)]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['rows']}x{v['cols']}-p{v['p']:.3f}")
def test_published_vectors(vector):
    offset = vector.get("row0", 0), vector.get("col0", 0)
    place = (vector[name] for name in ("seed", "sample", "site", "rows", "cols", "p"))
    mask = drop_mask(*place, *offset)
    assert mask.dtype == torch.bool
    assert mask.shape == (vector["rows"], vector["cols"])
    packed = np.packbits(mask.numpy(), axis=-1)
    assert mask.sum() == vector["dropped"]
    assert hashlib.sha256(packed.tobytes()).hexdigest() == vector["sha256_of_packbits"]
    if "packbits_hex_rows" in vector:
        assert [row.tobytes().hex() for row in packed] == vector["packbits_hex_rows"]


@any_example
@given(seeds, samples, sites, thresholds, sizes, sizes, offsets, offsets)
def test_drop_mask_is_the_reference(seed, sample, site, threshold, rows, cols, row0, col0):
    mask = drop_mask(seed, sample, site, rows, cols, threshold / 256, row0, col0)
    np.testing.assert_array_equal(mask.numpy(), dropped(seed, sample, site, threshold, rows, cols, row0, col0))


@any_example
@given(
    seeds, st.lists(samples, min_size=1, max_size=3), sites, thresholds, st.integers(1, 3), sizes, sizes, offsets,
    offsets, st.booleans(),
)  # fmt: skip
def test_keep_planes_is_the_reference(
    seed, batch, site, threshold, planes, rows, columns, row_offset, column_offset, causal
):
    plane = Plane(seed, site, threshold, row_offset, column_offset)
    keep = keep_planes(torch.tensor(batch), plane, planes, rows, columns, causal)
    mask = dropped_planes(seed, batch, site, planes, threshold, rows, columns, row_offset, column_offset)
    if causal:
        mask |= column_offset + np.arange(columns) > (row_offset + np.arange(rows))[:, None]
    assert keep.dtype == torch.int8
    assert torch.equal(keep, as_keep(mask))


@any_example
@given(seeds, st.lists(samples, min_size=1, max_size=3), sites, thresholds, sizes, sizes, offsets, offsets)
def test_keep_hidden_is_the_reference(seed, batch, site, threshold, rows, columns, row_offset, column_offset):
    plane = Plane(seed, site, threshold, row_offset, column_offset)
    keep = keep_hidden(torch.tensor(batch), plane, rows, columns)
    mask = dropped_planes(seed, batch, site, 1, threshold, rows, columns, row_offset, column_offset)[:, 0]
    assert keep.is_contiguous()
    assert torch.equal(keep, as_keep(mask.transpose(1, 0, 2)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("rows", "columns", "row_offset"), [(700, 901, 3), (3, 5000, 4099), (1500, 70, 60)])
def test_planes_larger_than_one_rectangle(rows, columns, row_offset, causal):
    keep = keep_planes(torch.tensor([2**32 - 1]), Plane(SEED, 7, 26, row_offset, 5), 2, rows, columns, causal)
    mask = dropped_planes(SEED, [2**32 - 1], 7, 2, 26, rows, columns, row_offset, 5)
    if causal:
        mask |= 5 + np.arange(columns) > (row_offset + np.arange(rows))[:, None]
    assert torch.equal(keep, as_keep(mask))


def test_the_highest_site():
    mask = drop_mask(SEED, 3, 2**31 - 1, 9, 70, 0.3)
    np.testing.assert_array_equal(mask.numpy(), dropped(SEED, 3, 2**31 - 1, 77, 9, 70))


def test_a_sample_counts_modulo_2_to_the_32():
    assert torch.equal(drop_mask(1, 5, 2, 16, 64, 0.5), drop_mask(1, 5 + 2**32, 2, 16, 64, 0.5))
    assert not torch.equal(drop_mask(1, 5, 2, 16, 64, 0.5), drop_mask(1, 6, 2, 16, 64, 0.5))


def test_a_seed_has_64_bits_and_survives_the_sign():
    masks = [drop_mask(seed, 5, 2, 16, 64, 0.5) for seed in (1, 1 + 2**32, 1 + 2**63)]
    assert not any(torch.equal(masks[a], masks[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    for seed in (0, 2**63 - 1, 2**63, 2**64 - 1, SEED):
        assert -(2**63) <= signed_seed(seed) < 2**63
        assert unsigned_seed(signed_seed(seed)) == seed


@pytest.mark.parametrize("dropout_p", [1.0, -0.1, 0.999, 0.001, math.nan, math.inf, 1.5])
def test_a_dropout_p_without_a_threshold_is_an_error(dropout_p):
    with pytest.raises(ValueError, match="has no multiple of 1/256"):
        drop_mask(0, 0, 0, 4, 4, dropout_p)


@pytest.mark.parametrize(("dropout_p", "threshold"), [(0, 0), (0.002, 1), (0.1, 26), (0.5, 128), (0.998, 255)])
def test_threshold_and_scale(dropout_p, threshold):
    assert drop_threshold(dropout_p) == threshold
    assert keep_scale(threshold) == 256 / (256 - threshold)


def test_one_batch_of_four_is_four_of_one():
    batch, plane = torch.tensor([9, 2, 2**32 - 1, 40]), Plane(SEED, 11, 26, 3, 5)
    planes, hidden = keep_planes(batch, plane, 3, 37, 75, causal=True), keep_hidden(batch, plane, 37, 75)
    for k in range(4):
        assert torch.equal(planes[k : k + 1], keep_planes(batch[k : k + 1], plane, 3, 37, 75, causal=True))
        assert torch.equal(hidden[:, k : k + 1], keep_hidden(batch[k : k + 1], plane, 37, 75))


@pytest.mark.parametrize("causal", [False, True])
def test_head_row_and_column_halves_are_those_of_the_whole(causal):
    batch, plane = torch.tensor([9, 2]), Plane(SEED, 11, 26)
    whole = keep_planes(batch, plane, 4, 45, 141, causal)
    heads = [keep_planes(batch, plane._replace(site=11 + start), 2, 45, 141, causal) for start in (0, 2)]
    assert torch.equal(torch.cat(heads, 1), whole)
    rows = [keep_planes(batch, plane._replace(row_offset=r), 4, n, 141, causal) for r, n in ((0, 19), (19, 26))]
    assert torch.equal(torch.cat(rows, 2), whole)
    columns = [keep_planes(batch, plane._replace(column_offset=c), 4, 45, n, causal) for c, n in ((0, 67), (67, 74))]
    assert torch.equal(torch.cat(columns, 3), whole)


def test_hidden_row_and_column_halves_are_those_of_the_whole():
    batch, plane = torch.tensor([9, 2]), Plane(SEED, 11, 26)
    whole = keep_hidden(batch, plane, 45, 141)
    rows = [keep_hidden(batch, plane._replace(row_offset=r), n, 141) for r, n in ((0, 19), (19, 26))]
    assert torch.equal(torch.cat(rows, 0), whole)
    columns = [keep_hidden(batch, plane._replace(column_offset=c), 45, n) for c, n in ((0, 67), (67, 74))]
    assert torch.equal(torch.cat(columns, 2), whole)
