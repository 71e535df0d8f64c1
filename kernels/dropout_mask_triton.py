"""The dropout mask inside Triton kernels, and a kernel that writes it packed, one bit an element.

docs/dropout-mask.md defines the mask; dropout_mask.py is the CPU's version. One 32-bit drop word serves the elements
of rows {r, r+8} x columns {8k+2g, 8k+2g+1}, k in 0..7, of a 16 x 64 tile, so a mask tile costs one word per 32
elements and is expanded by a bitwise test. Tiles lie on the global grid of 16 rows and 64 columns: a kernel whose
tensor begins at some other global position starts with a tile that hangs over the tensor's edge, so every offset works
alike.

A tile has BLOCK_M rows and BLOCK_N columns (a multiple of 64). BLOCK_M is a multiple of 16, or 2, 4 or 8: then a tile
holds rows r and r+8 of BLOCK_M/2 neighbouring r, so that no bit of a word is wasted while few rows are in flight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

PACKED_BLOCK_M, PACKED_BLOCK_N, PACKED_WARPS = 16, 1024, 4


@triton.jit
def _philox4x32(c0, c1, c2, c3, key_0, key_1):
    """Ten rounds of Philox4x32 (Salmon et al. 2011) on uint32 counters that broadcast to the shape of the words."""
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * 0xD2511F53
        product_1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_0
        c1 = product_1.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1
        c3 = product_0.to(tl.uint32)
        key_0 = tl.add(key_0, 0x9E3779B9, sanitize_overflow=False)
        key_1 = tl.add(key_1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _fold(drop, word, THRESHOLD: tl.constexpr, BIT: tl.constexpr):
    if (THRESHOLD >> BIT) & 1:
        return drop | word
    else:
        return drop & word


@triton.jit
def _drop_words(row_groups, column_groups, sample, site, seed_low, seed_high, THRESHOLD: tl.constexpr):
    """uint32 words whose bits are each 1 with probability THRESHOLD/256, one per pair of counters."""
    drop = tl.zeros([1], tl.uint32)
    for half in tl.static_range(2):
        if half == 1 or THRESHOLD % 16 != 0:  # while the low bits of t are 0 the fold stays 0: skip their words
            w0, w1, w2, w3 = _philox4x32(
                row_groups,
                column_groups,
                sample,
                site.to(tl.uint32) * 2 + half,
                seed_low.to(tl.uint32),
                seed_high.to(tl.uint32),
            )
            drop = _fold(drop, w0, THRESHOLD, 4 * half)
            drop = _fold(drop, w1, THRESHOLD, 4 * half + 1)
            drop = _fold(drop, w2, THRESHOLD, 4 * half + 2)
            drop = _fold(drop, w3, THRESHOLD, 4 * half + 3)
    return drop


@triton.jit
def tile_first_row(tile, BLOCK_M: tl.constexpr):
    """The first row of a tile, counted from the first tile's block of 16 rows."""
    if BLOCK_M >= 16:
        return tile * BLOCK_M
    else:
        return tile // (16 // BLOCK_M) * 16 + tile % (16 // BLOCK_M) * (BLOCK_M // 2)


@triton.jit
def tile_rows(tile, BLOCK_M: tl.constexpr):
    """int32 [BLOCK_M]: the rows of a tile, counted likewise."""
    index = tl.arange(0, BLOCK_M)
    if BLOCK_M < 16:
        index = index // (BLOCK_M // 2) * 8 + index % (BLOCK_M // 2)
    return tile_first_row(tile, BLOCK_M) + index


@triton.jit
def load_sample(sample_index, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The sample's low 32 bits as a tensor of the words' shape [BLOCK_M / 2, BLOCK_N / 64, 4].

    A tensor of one and the same value, because Triton recomputes no expression with a load of a word or more a thread:
    else eight threads compute each word, in the layout that the expansion wants. With the load the words are computed
    once and exchanged: the one layout conversion of the mask.
    """
    return tl.load(sample_index + tl.zeros([BLOCK_M // 2, BLOCK_N // 64, 4], tl.int32)).to(tl.uint32)


@triton.jit
def _word_tile(
    first_row, first_column, sample, site, seed_low, seed_high,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """uint32 [BLOCK_M / 2, BLOCK_N / 64, 4]: the drop words of the tile that begins at this global row and column."""
    row_groups = first_row // 16 * 8 + first_row % 16 + tl.arange(0, BLOCK_M // 2)
    column_groups = first_column // 16 + tl.arange(0, BLOCK_N // 16)
    return _drop_words(
        tl.reshape(row_groups.to(tl.uint32), [BLOCK_M // 2, 1, 1]),
        tl.reshape(column_groups.to(tl.uint32), [1, BLOCK_N // 64, 4]),
        sample, site, seed_low, seed_high, THRESHOLD,
    )  # fmt: skip


@triton.jit
def kept_tile(
    tile, row_offset, first_column, sample, site, seed_low, seed_high,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bool [BLOCK_M, BLOCK_N], True where kept: a tile's rows (`tile_rows`) from the global column first_column.

    Tile 0 begins with the block of 16 rows that row_offset lies in; first_column is a multiple of 64; sample comes from
    `load_sample`. Select with the mask between values of the tile that were loaded: from there the compiler takes the
    layout, and converts nothing but the words.
    """
    first_row = row_offset // 16 * 16 + tile_first_row(tile, BLOCK_M)
    words = _word_tile(first_row, first_column, sample, site, seed_low, seed_high, THRESHOLD, BLOCK_M, BLOCK_N)
    return _expand(words, BLOCK_M, BLOCK_N)


@triton.jit
def kept_score_tile(
    first_row, first_column, sample, site, seed_low, seed_high,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bool [BLOCK_M, BLOCK_N], True where kept, for a tile of scores that comes out of a matrix product.

    first_row and first_column are global, multiples of 16 and 64, as BLOCK_M and BLOCK_N are; sample is a uint32.
    A thread then holds just the 32 elements of a word it computes itself: nothing is exchanged.
    """
    words = _word_tile(first_row, first_column, sample, site, seed_low, seed_high, THRESHOLD, BLOCK_M, BLOCK_N)
    return _expand(words, BLOCK_M, BLOCK_N)


@triton.jit
def load_sample_transposed(sample_index, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, COPIES: tl.constexpr):
    """`load_sample` for `kept_tile_transposed`; COPIES: threads for each word, where a tile has fewer words."""
    if COPIES == 1:  # no axis to reduce: Triton 3.8 converts Philox's words from the layout that remains of one
        return tl.load(sample_index + tl.zeros([BLOCK_N // 16, BLOCK_M // 2], tl.int32)).to(tl.uint32)
    else:
        copies = tl.load(sample_index + tl.zeros([BLOCK_N // 16, BLOCK_M // 2, COPIES], tl.int32)).to(tl.uint32)
        return tl.max(copies, 2)


@triton.jit
def kept_tile_transposed(
    first_row, first_column, sample, site, seed_low, seed_high,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bool [BLOCK_N, BLOCK_M], True where kept: the mask of a tile of transposed scores, otherwise `kept_score_tile`.

    sample comes from `load_sample_transposed`: here a thread holds elements of several words, four of each, so words
    are computed once and exchanged.
    """
    BLOCKS: tl.constexpr = BLOCK_M // 16
    COLUMNS: tl.constexpr = BLOCK_N // 64
    row_groups = first_row // 16 * 8 + tl.arange(0, BLOCK_M // 2)
    column_groups = first_column // 16 + tl.arange(0, BLOCK_N // 16)
    words = _drop_words(
        row_groups.to(tl.uint32)[None, :], column_groups.to(tl.uint32)[:, None],
        sample, site, seed_low, seed_high, THRESHOLD,
    )  # fmt: skip
    # Axes: 64-column block, k, g, e, 16-row block, half of it, r.
    words = tl.reshape(words, [COLUMNS, 1, 4, 1, BLOCKS, 1, 8])
    words = tl.broadcast_to(words, [COLUMNS, 8, 4, 2, BLOCKS, 2, 8])
    place = (
        tl.reshape(tl.arange(0, 8) * 2, [1, 8, 1, 1, 1, 1, 1])
        + tl.reshape(tl.arange(0, 2), [1, 1, 1, 2, 1, 1, 1])
        + tl.reshape(tl.arange(0, 2) * 16, [1, 1, 1, 1, 1, 2, 1])
    )
    bit = tl.full([1, 8, 1, 2, 1, 2, 1], 1, tl.uint32) << place.to(tl.uint32)
    return tl.reshape((words & bit) == 0, [BLOCK_N, BLOCK_M])


@triton.jit
def kept_rows(
    row, first_column, sample, site, seed_low, seed_high,
    THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Bool [BLOCK_M, BLOCK_N], True where kept: the global rows `row` (int32 [BLOCK_M]) from the column first_column.

    For programs that own whole rows of any samples, at twice the words of `kept_tile`: half the bits of each go unused.
    sample: loaded as in `load_sample` and for its reason, [BLOCK_M, BLOCK_N / 64, 4]. first_column: a multiple of 64.
    """
    row = tl.reshape(row, [BLOCK_M, 1, 1])
    column_groups = tl.reshape(first_column // 16 + tl.arange(0, BLOCK_N // 16), [1, BLOCK_N // 64, 4])
    row_groups = row // 16 * 8 + row % 8
    words = _drop_words(
        row_groups.to(tl.uint32), column_groups.to(tl.uint32), sample, site, seed_low, seed_high, THRESHOLD
    )
    words = tl.reshape(words >> (row % 16 // 8 * 16).to(tl.uint32), [BLOCK_M, BLOCK_N // 64, 1, 4, 1])
    place = tl.reshape(tl.arange(0, 8) * 2, [1, 1, 8, 1, 1]) + tl.reshape(tl.arange(0, 2), [1, 1, 1, 1, 2])
    bit = tl.full([1, 1, 8, 1, 2], 1, tl.uint32) << place.to(tl.uint32)
    return tl.reshape((words & bit) == 0, [BLOCK_M, BLOCK_N])


@triton.jit
def _expand(words, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bool [BLOCK_M, BLOCK_N], True where kept, from the words of `_word_tile`."""
    BLOCKS: tl.constexpr = (BLOCK_M + 15) // 16
    HALF: tl.constexpr = BLOCK_M // (2 * BLOCKS)
    COLUMNS: tl.constexpr = BLOCK_N // 64
    # Axes: 16-row block, half of it (row r or r + 8), r, 64-column block, k, g, e. Tests against a bit mask that does
    # not change from tile to tile take one instruction an element; shifting the word would take two.
    words = tl.reshape(words, [BLOCKS, 1, HALF, COLUMNS, 1, 4, 1])
    words = tl.broadcast_to(words, [BLOCKS, 2, HALF, COLUMNS, 8, 4, 2])
    place = (
        tl.reshape(tl.arange(0, 2) * 16, [1, 2, 1, 1, 1, 1, 1])
        + tl.reshape(tl.arange(0, 8) * 2, [1, 1, 1, 1, 8, 1, 1])
        + tl.reshape(tl.arange(0, 2), [1, 1, 1, 1, 1, 1, 2])
    )
    bit = tl.full([1, 2, 1, 1, 8, 1, 2], 1, tl.uint32) << place.to(tl.uint32)
    return tl.reshape((words & bit) == 0, [BLOCK_M, BLOCK_N])


@triton.jit
def _pack(words, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """uint8 [BLOCK_M, BLOCK_N / 8]: byte n of a row holds columns 8n to 8n+7, the lowest bit first; 1 is dropped."""
    BLOCKS: tl.constexpr = (BLOCK_M + 15) // 16
    HALF: tl.constexpr = BLOCK_M // (2 * BLOCKS)
    COLUMNS: tl.constexpr = BLOCK_N // 64
    even, odd = tl.split(tl.reshape(words, [BLOCKS, 1, HALF, COLUMNS, 1, 2, 2]))
    w0, w2 = tl.split(even)
    w1, w3 = tl.split(odd)
    place = tl.reshape(tl.arange(0, 2) * 16, [1, 2, 1, 1, 1]) + tl.reshape(tl.arange(0, 8) * 2, [1, 1, 1, 1, 8])
    place = place.to(tl.uint32)
    low = ((w0 >> place) & 3) | (((w1 >> place) & 3) << 2)
    high = ((w2 >> place) & 3) | (((w3 >> place) & 3) << 2)
    return tl.reshape((low | (high << 4)).to(tl.uint8), [BLOCK_M, BLOCK_N // 8])


@triton.jit(do_not_specialize=["seed_low", "seed_high", "site", "planes", "rows", "row_offset", "first_column"])
def _drop_bits_kernel(
    bits, sample_index, seed_low, seed_high, site, planes, rows, row_bytes, row_offset, first_column,
    BYTE_LEAD: tl.constexpr, THRESHOLD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program a tile of one plane; the bits begin BYTE_LEAD bytes to the right of the global first_column."""
    row_lead = row_offset % 16
    row_tiles = tl.cdiv(row_lead + rows, BLOCK_M)
    column_tiles = tl.cdiv(BYTE_LEAD + row_bytes, BLOCK_N // 8)
    program = tl.program_id(0)
    plane = program // (row_tiles * column_tiles)
    row_start = program // column_tiles % row_tiles * BLOCK_M - row_lead
    column_tile = program % column_tiles
    words = _word_tile(
        row_offset + row_start, first_column + column_tile * BLOCK_N,
        load_sample(sample_index + plane // planes, BLOCK_M, BLOCK_N), site + plane % planes, seed_low, seed_high,
        THRESHOLD, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    row = row_start + tl.arange(0, BLOCK_M)[:, None]
    byte = column_tile * (BLOCK_N // 8) - BYTE_LEAD + tl.arange(0, BLOCK_N // 8)[None, :]
    inside = (row >= 0) & (row < rows) & (byte >= 0) & (byte < row_bytes)
    pointers = bits + (plane.to(tl.int64) * rows + row) * row_bytes + byte
    tl.store(pointers, _pack(words, BLOCK_M, BLOCK_N), mask=inside)


def drop_bits(sample_index: Tensor, plane: Plane, planes: int, rows: int, columns: int) -> Tensor:
    """uint8 [b, planes, rows, ceil(columns / 8)], one bit an element, 1 where dropped.

    Byte n of a row holds columns 8n to 8n+7, the lowest bit first (NumPy's bitorder="little"); bits past the last
    column mean nothing. sample_index: int64 [b] on the GPU. Plane p uses site + p.
    """
    shift = plane.column_offset % 8
    row_bytes = triton.cdiv(columns + shift, 8)
    bits = sample_index.new_empty(sample_index.numel(), planes, rows, row_bytes, dtype=torch.uint8)
    if plane.threshold == 0 or bits.numel() == 0:
        return bits.zero_()[..., : triton.cdiv(columns, 8)]
    byte_lead = plane.column_offset % 64 // 8
    tiles = triton.cdiv(plane.row_offset % 16 + rows, PACKED_BLOCK_M)
    tiles *= triton.cdiv(byte_lead + row_bytes, PACKED_BLOCK_N // 8)
    with torch.cuda.device_of(bits):
        _drop_bits_kernel[(bits.shape[0] * planes * tiles,)](
            bits, sample_index, *key_words(plane.seed), plane.site, planes, rows, row_bytes,
            plane.row_offset, plane.column_offset // 64 * 64,
            BYTE_LEAD=byte_lead, THRESHOLD=plane.threshold,
            BLOCK_M=PACKED_BLOCK_M, BLOCK_N=PACKED_BLOCK_N, num_warps=PACKED_WARPS,
        )  # fmt: skip
    if shift:  # bytes on the global grid straddle those asked for
        bits = bits >> shift | torch.nn.functional.pad(bits[..., 1:], (0, 1)) << 8 - shift
    return bits[..., : triton.cdiv(columns, 8)].contiguous()


def drop_mask_planes(sample_index: Tensor, plane: Plane, planes: int, rows: int, columns: int) -> Tensor:
    """Bool [b, planes, rows, columns], True where dropped; arguments as in `drop_bits`."""
    bits = drop_bits(sample_index, plane, planes, rows, columns)
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits.unsqueeze(-1) >> places & 1).flatten(-2)[..., :columns].bool()


def key_words(seed: int) -> tuple[int, int]:
    """The seed's low and high 32 bits as signed integers: Triton then types every seed alike and compiles once."""
    low, high = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def access_unit(width: int, column_offset: int, element_bytes: int) -> int:
    """Elements that a thread reads at once: 16 bytes of them where rows and offset allow it, else one."""
    unit = 16 // element_bytes
    return unit if width % unit == 0 and column_offset % unit == 0 else 1


def tile_shape(width: int, unit: int) -> tuple[int, int]:
    """(BLOCK_M, BLOCK_N) for 4 warps, from the row's width and `access_unit`.

    4096 elements, one drop word for each thread's 32, or fewer where so many would not fit the registers: in fp32, and
    with an access for each element. (There several threads compute the same word, but the wider or slower accesses
    leave them the time.) As few rows as the width allows, because a row block that is read twice should still be in the
    cache; at least 256 columns, so that a warp reads 512 bytes in a row. Fixed, as it sets the order of row sums.
    """
    elements = {8: 4096, 4: 2048, 1: 1024}[unit]
    block_n = min(max(triton.next_power_of_2(width) // 4, 256), elements // 2)
    return elements // block_n, block_n
