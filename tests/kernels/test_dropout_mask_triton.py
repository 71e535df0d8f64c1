"""The mask inside Triton kernels and the packed-bit kernel, against the element-by-element reference."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from mask_reference import dropped, dropped_planes

from megaselect.kernels.dropout_mask import Plane
from megaselect.kernels.dropout_mask_triton import (
    drop_bits,
    drop_mask_planes,
    kept_tile,
    key_words,
    load_sample,
    tile_rows,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VECTORS = json.loads(Path(__file__).with_name("dropout_mask_vectors.json").read_text())
SEED = 0xDEADBEEFCAFEF00D  # both 32-bit halves have their highest bit set


def samples(*values):
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['rows']}x{v['cols']}-p{v['p']:.3f}")
def test_published_vectors(vector):
    plane = Plane(
        vector["seed"],
        vector["site"],
        math.floor(256 * vector["p"] + 0.5),
        vector.get("row0", 0),
        vector.get("col0", 0),
    )
    mask = drop_mask_planes(samples(vector["sample"]), plane, 1, vector["rows"], vector["cols"])[0, 0].cpu().numpy()
    assert mask.sum() == vector["dropped"]
    assert hashlib.sha256(np.packbits(mask, axis=-1).tobytes()).hexdigest() == vector["sha256_of_packbits"]


@pytest.mark.parametrize("threshold", [1, 26, 48, 128, 255])
def test_thresholds_with_and_without_the_first_half_of_the_words(threshold):
    mask = drop_mask_planes(samples(7), Plane(1234, 3, threshold), 1, 16, 128)
    np.testing.assert_array_equal(mask.cpu().numpy()[0, 0], dropped(1234, 7, 3, threshold, 16, 128))


@pytest.mark.parametrize(
    ("rows", "cols", "row_offset", "column_offset"),
    [(1, 1, 0, 0), (17, 127, 0, 0), (33, 72, 48, 64), (20, 100, 5, 24), (19, 77, 7, 13), (2, 1030, 15, 1)],
)
def test_ragged_sizes_and_any_offset(rows, cols, row_offset, column_offset):
    values = 3, 2**32 + 5, 2**32 - 1  # a sample counts modulo 2**32
    plane = Plane(SEED, 2**31 - 3, 26, row_offset, column_offset)
    mask = drop_mask_planes(samples(*values), plane, 2, rows, cols)
    expected = dropped_planes(SEED, values, plane.site, 2, 26, rows, cols, row_offset, column_offset)
    np.testing.assert_array_equal(mask.cpu().numpy(), expected)


def test_packed_bits_are_little_endian_within_a_byte():
    bits = drop_bits(samples(9), Plane(5, 11, 64), 1, 3, 24).cpu().numpy()
    np.testing.assert_array_equal(bits[0, 0], np.packbits(dropped(5, 9, 11, 64, 3, 24), axis=-1, bitorder="little"))
    assert drop_bits(samples(9), Plane(5, 11, 64, 0, 3), 1, 3, 20).shape == (1, 1, 3, 3)


def test_no_bit_is_dropped_at_threshold_0():
    assert not drop_bits(samples(9), Plane(5, 11, 0), 1, 3, 24).any()


@triton.jit
def _write_kept(
    out, sample_index, site, seed_low, seed_high, tile, row_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    sample = load_sample(sample_index, BLOCK_M, BLOCK_N)
    kept = kept_tile(tile, row_offset, 128, sample, site, seed_low, seed_high, 26, BLOCK_M, BLOCK_N)
    row = tile_rows(tile, BLOCK_M)
    tl.store(out + row[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :], kept.to(tl.int8))


@pytest.mark.parametrize(("block_m", "block_n"), [(2, 256), (4, 64), (8, 128), (16, 64), (32, 64), (128, 128)])
def test_tile_shapes(block_m, block_n):
    rows = max(block_m, 16)
    out = torch.full((rows, block_n), -5, dtype=torch.int8, device=DEVICE)
    for tile in range(rows // block_m):
        _write_kept[(1,)](out, samples(4), 21, *key_words(SEED), tile, 37, BLOCK_M=block_m, BLOCK_N=block_n)
    expected = ~dropped(SEED, 4, 21, 26, rows, block_n, row0=32, col0=128)
    np.testing.assert_array_equal(out.cpu().numpy(), expected.astype(np.int8))


def test_key_words_keep_every_bit_of_the_seed():
    for seed in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, SEED):
        low, high = key_words(seed)
        assert -(2**31) <= low < 2**31
        assert -(2**31) <= high < 2**31
        assert (low % 2**32) + (high % 2**32) * 2**32 == seed
