"""What Numba compiles for the CPU: dropout masks, and softmax with dropout, row by row.

Shapes: P planes (b micro-batch times a heads), q query rows, k key columns. Wherever these run they give the same bits:
sums go over a fixed number of lanes, nothing is reassociated or contracted, exp2 is a polynomial. They hold neither the
interpreter lock nor threads of their own.

One file, because Numba's cache of compiled code looks at the file of a function and not at those of what it calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload

from megaselect.kernels.dropout_mask import PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, TILE_COLUMNS, TILE_ROWS
from megaselect.kernels.dropout_mask_numpy import expanded_bytes

u32, u64, i32, f32 = np.uint32, np.uint64, np.int32, np.float32

STEP_0, STEP_1 = (u32(step) for step in PHILOX_KEY_STEPS)
MULTIPLY_0, MULTIPLY_1 = (u64(multiplier) for multiplier in PHILOX_MULTIPLIERS)
HIGH = u64(32)
WORDS = TILE_COLUMNS // 16  # of a row of a tile
EXPANDED = expanded_bytes()
LOG2_E = f32(math.log2(math.e))
ROUNDER = f32(1.5 * 2**23)  # added and taken away, it rounds to an integer, which its last bits hold meanwhile
TINIEST = f32(-125)  # exp2 of what is below is 0
# 2**x = 1 + E1 x + ... on [-1/2, 1/2], relative error below 4e-9, by Remez's algorithm.
E1, E2, E3 = f32(0.69314718246), f32(0.24022650719), f32(0.05550328642)
E4, E5, E6 = f32(0.00961812492), f32(0.00134004210), f32(0.00015431234)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """By Numba at the first call, and kept on disk where some place for that can be written to."""
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no such place
        return numba.njit(nogil=True, error_model="numpy")(function)


# --- dropout masks -------------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _round(c0, c1, c2, c3, key_0, key_1, number):
    product_0, product_1 = MULTIPLY_0 * u64(c0), MULTIPLY_1 * u64(c2)
    k0, k1 = u32(key_0 + u32(number * STEP_0)), u32(key_1 + u32(number * STEP_1))
    return u32(u32(product_1 >> HIGH) ^ c1 ^ k0), u32(product_1), u32(u32(product_0 >> HIGH) ^ c3 ^ k1), u32(product_0)


@compiled
def _fold(words, column, row, sample, site_half, key_0, key_1, bits):
    """Fold the four words of each counter into words[n] by the four bits, least significant first.

    The rounds stand one by one, as LLVM leaves a loop of them in scalars or in 64 bits: half the speed or less.
    """
    or_0, or_1, or_2, or_3 = u32(-(bits & 1)), u32(-(bits >> 1 & 1)), u32(-(bits >> 2 & 1)), u32(-(bits >> 3 & 1))
    for k in range(words.size):
        c0, c1, c2, c3 = _round(row, u32(column + u32(k)), sample, site_half, key_0, key_1, 0)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 1)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 2)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 3)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 4)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 5)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 6)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 7)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 8)
        c0, c1, c2, c3 = _round(c0, c1, c2, c3, key_0, key_1, 9)
        drop = words[k]
        drop = drop & (c0 | or_0) | c0 & or_0
        drop = drop & (c1 | or_1) | c1 & or_1
        drop = drop & (c2 | or_2) | c2 & or_2
        words[k] = drop & (c3 | or_3) | c3 & or_3


@compiled
def _drop_words(words, row_tile, column_tile, sample, site, key_0, key_1, threshold):
    """words[8, WORDS * tiles] of a row of tiles, from column_tile on; see dropout_mask.py."""
    for r in range(TILE_ROWS // 2):
        for k in range(words.shape[1]):
            words[r, k] = 0
        for half in range(2):
            bits = threshold >> 4 * half & 15
            if half == 1 or bits:  # below the lowest 1 of the threshold the fold is `0 & word`
                counters = u32(row_tile * 8 + r), sample, u32(2 * site + half)
                _fold(words[r], u32(column_tile * WORDS), *counters, key_0, key_1, bits)


@compiled
def _expand(words, row, keep):
    """keep[8 * tiles], each byte of which is -1 where kept, of one row of the tiles."""
    shift = u32(row % TILE_ROWS // 8 * 16)
    for tile in range(words.shape[1] // WORDS):
        w0, w1 = words[row % 8, WORDS * tile] >> shift, words[row % 8, WORDS * tile + 1] >> shift
        w2, w3 = words[row % 8, WORDS * tile + 2] >> shift, words[row % 8, WORDS * tile + 3] >> shift
        for k in range(8):
            pair = u32(2 * k)
            low = w0 >> pair & u32(3) | (w1 >> pair & u32(3)) << u32(2)
            high = w2 >> pair & u32(3) | (w3 >> pair & u32(3)) << u32(2)
            keep[8 * tile + k] = EXPANDED[low | high << u32(4)]


@compiled
def _tiles(row_tile, rows, columns, row_offset, column_offset, causal):
    """How many tiles of a row of them hold an element that is asked for and, where causal, live."""
    end = column_offset + columns
    if causal:
        end = min(end, min(row_tile * TILE_ROWS + TILE_ROWS, row_offset + rows))
    return max(-(-end // TILE_COLUMNS) - column_offset // TILE_COLUMNS, 0)


@compiled
def _live(row, columns, row_offset, column_offset):
    """How many columns a row of a causal plane sees."""
    return min(max(row_offset + row - column_offset + 1, 0), columns)


@compiled
def _scratch(columns, column_offset):
    """Words of a row of tiles, and what a row of it expands to; and where the first column is in that."""
    skipped = column_offset % TILE_COLUMNS
    tiles = -(-(skipped + columns) // TILE_COLUMNS)
    return np.empty((TILE_ROWS // 2, WORDS * tiles), u32), np.empty(8 * tiles, u64), skipped


@compiled
def _words_of_tiles(
    all_words, tile, rows, columns, sample, site, key_0, key_1, threshold, row_offset, column_offset, causal
):
    """The drop words of a row of tiles, as far as they are asked for."""
    words = all_words[:, : WORDS * _tiles(tile, rows, columns, row_offset, column_offset, causal)]
    _drop_words(words, tile, column_offset // TILE_COLUMNS, sample, site, key_0, key_1, threshold)
    return words


@compiled
def _zero_beyond(live, row):
    for column in range(live, row.size):
        row[column] = 0


@compiled
def _write_flags(flags, target):
    """And 0 beyond them. By loops, as Numba takes two seconds to compile an assignment of slices."""
    for column in range(flags.size):
        target[column] = flags[column]
    _zero_beyond(flags.size, target)


@compiled
def fill_keep(keep, samples, planes, site, key_0, key_1, threshold, row_offset, column_offset, causal, start, stop):
    """Planes [start, stop) of keep, int8 [P, q, k]: -1 where kept, 0 where dropped or, where causal, dead."""
    rows, columns = keep.shape[1:]
    all_words, line, skipped = _scratch(columns, column_offset)
    words, flags = all_words, line.view(np.int8)
    for plane in range(start, stop):
        sample, head = u32(samples[plane // planes]), site + plane % planes
        for row in range(rows):
            at = row_offset + row
            if row == 0 or at % TILE_ROWS == 0:
                words = _words_of_tiles(
                    all_words, at // TILE_ROWS, rows, columns, sample, head, key_0, key_1, threshold, row_offset,
                    column_offset, causal,
                )  # fmt: skip
            live = _live(row, columns, row_offset, column_offset) if causal else columns
            _expand(words, at, line)
            _write_flags(flags[skipped : skipped + live], keep[plane, row])


# --- softmax and dropout -------------------------------------------------------------------------------------------


@numba.njit(inline="always")
def _exp2(x):
    """Within two units in the last place; 0 below 2**-125, NaN of NaN."""
    rounded = x + ROUNDER
    part = x - (rounded - ROUNDER)  # -1/2 to 1/2
    square = part * part
    power = (f32(1) + part * E1) + square * (E2 + part * E3) + square * square * ((E4 + part * E5) + square * E6)
    bits = i32(f32(power).view(np.int32) + i32(f32(rounded).view(np.int32) << i32(23)))
    value = f32(0) if x < TINIEST else i32(bits).view(np.float32)
    return x if x != x else value


@numba.njit(inline="always")
def _ordered(bits):
    """fp32's bits as an integer with the order of the numbers (NaN beyond infinity), and back."""
    return i32(bits ^ (i32(bits >> 31) & 0x7FFFFFFF))


@compiled
def _highest(row):
    """0 where there is nothing above -inf. As integers, whose maximum needs no order to be the same."""
    highest = _ordered(i32(f32(-np.inf).view(np.int32)))
    for column in range(row.size):
        value = _ordered(f32(row[column]).view(np.int32))
        highest = value if value > highest else highest
    found = i32(_ordered(highest)).view(np.float32)
    return f32(0) if found == -np.inf else found


@compiled
def _sum(row):
    """In eight parts, which fill a vector and so fix the order."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = f32(0)
    whole = row.size // 8 * 8
    for k in range(0, whole, 8):
        s0, s1, s2, s3 = s0 + row[k], s1 + row[k + 1], s2 + row[k + 2], s3 + row[k + 3]
        s4, s5, s6, s7 = s4 + row[k + 4], s5 + row[k + 5], s6 + row[k + 6], s7 + row[k + 7]
    total = ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))
    for k in range(whole, row.size):
        total += row[k]
    return total


@compiled
def _exponentials_(row, highest):
    for column in range(row.size):
        row[column] = _exp2((row[column] - highest) * LOG2_E)


@compiled
def _bf16_bits(value):
    """Rounded to nearest, ties to even."""
    bits = u32(f32(value).view(np.uint32))
    rounded = u32(bits + u32(0x7FFF) + (bits >> u32(16) & u32(1))) >> u32(16)
    return np.int16(u32(0x7FC0) if value != value else rounded)


def _load(source, row):
    """row: fp32, from fp32 or from bf16's bits (int16)."""


@overload(_load)
def _(source, row):
    if source.dtype == numba.types.float32:

        def copy(source, row):
            for column in range(row.size):
                row[column] = source[column]

        return copy

    def widen(source, row):
        for column in range(row.size):
            row[column] = i32(i32(source[column]) << 16).view(np.float32)

    return widen


def _store(row, target):
    """The inverse: rounds where the target is bf16's bits. What lies beyond the row is dead and becomes 0."""


@overload(_store)
def _(row, target):
    if target.dtype == numba.types.float32:

        def copy(row, target):
            for column in range(row.size):
                target[column] = row[column]
            _zero_beyond(row.size, target)

        return copy

    def narrow(row, target):
        for column in range(row.size):
            target[column] = _bf16_bits(row[column])
        _zero_beyond(row.size, target)

    return narrow


def _round_(row, like):
    """To what like's dtype holds."""


@overload(_round_)
def _(row, like):
    if like.dtype == numba.types.float32:
        return lambda row, like: None

    def narrow_and_widen(row, like):
        for column in range(row.size):
            row[column] = i32(i32(_bf16_bits(row[column])) << 16).view(np.float32)

    return narrow_and_widen


@compiled
def _scale_(row, factor):
    for column in range(row.size):
        row[column] *= factor


@compiled
def _subtract_and_multiply_(row, subtracted, factors):
    for column in range(row.size):
        row[column] = (row[column] - subtracted) * factors[column]


@compiled
def _and_(row, keep):
    for column in range(row.size):
        row[column] = i32(f32(row[column]).view(np.int32) & i32(keep[column])).view(np.float32)


@compiled
def softmax_dropout(
    scores, samples, planes, site, key_0, key_1, threshold, row_offset, column_offset,
    dropped, row_max, inverse_sum, probs, mask, start, stop,
):  # fmt: skip
    """Planes [start, stop) of dropped, probs [P, q, k], mask int8 [P, q, k], row_max and inverse_sum fp32 [P, q].

    scores, dropped and probs are fp32, or bf16's bits (int16). probs and mask may have no element: not written then.
    """
    rows, columns = scores.shape[1:]
    all_words, line, skipped = _scratch(columns, column_offset)
    words, wide = all_words, np.empty(columns, f32)
    for plane in range(start, stop):
        sample, head = u32(samples[plane // planes] if threshold else 0), site + plane % planes
        for row in range(rows):
            at = row_offset + row
            if threshold and (row == 0 or at % TILE_ROWS == 0):
                words = _words_of_tiles(
                    all_words, at // TILE_ROWS, rows, columns, sample, head, key_0, key_1, threshold, row_offset,
                    column_offset, True,
                )  # fmt: skip
            live = _live(row, columns, row_offset, column_offset)
            values = wide[:live]
            _load(scores[plane, row], values)
            highest = _highest(values)
            _exponentials_(values, highest)
            total = _sum(values)
            inverse = f32(0) if total == 0 else f32(1) / total
            row_max[plane, row], inverse_sum[plane, row] = highest, inverse
            _scale_(values, inverse)
            if probs.size:
                _store(values, probs[plane, row])
            if threshold:
                _expand(words, at, line)
                keep = line.view(np.int8)[skipped : skipped + live]
                _and_(values, keep)
                if mask.size:
                    _write_flags(keep, mask[plane, row])
            _store(values, dropped[plane, row])


@compiled
def softmax_dropout_backward(
    grad, delta, samples, planes, site, key_0, key_1, threshold, row_offset, column_offset,
    scores, row_max, inverse_sum, probs, mask, dropped, start, stop,
):  # fmt: skip
    """Planes [start, stop) of grad [P, q, k], which goes from the dropped probs' to the scores', and of dropped.

    Of scores (with row_max and inverse_sum) and probs one has elements; mask has none where it is to be computed again,
    and dropped none where it is not asked for.
    """
    rows, columns = grad.shape[1:]
    all_words, line, skipped = _scratch(columns, column_offset)
    words, again = all_words, threshold and not mask.size
    values, products = np.empty(columns, f32), np.empty(columns, f32)
    for plane in range(start, stop):
        sample, head = u32(samples[plane // planes] if threshold else 0), site + plane % planes
        for row in range(rows):
            at = row_offset + row
            if again and (row == 0 or at % TILE_ROWS == 0):
                words = _words_of_tiles(
                    all_words, at // TILE_ROWS, rows, columns, sample, head, key_0, key_1, threshold, row_offset,
                    column_offset, True,
                )  # fmt: skip
            live = _live(row, columns, row_offset, column_offset)
            prob, product = values[:live], products[:live]
            if probs.size:
                _load(probs[plane, row], prob)
            else:
                _load(scores[plane, row], prob)
                _exponentials_(prob, row_max[plane, row])
                _scale_(prob, inverse_sum[plane, row])
                _round_(prob, scores)
            _load(grad[plane, row], product)
            if threshold:
                if again:
                    _expand(words, at, line)
                    keep = line.view(np.int8)[skipped : skipped + live]
                else:
                    keep = mask[plane, row, :live]
                _and_(product, keep)
            _subtract_and_multiply_(product, delta[plane, row], prob)
            _store(product, grad[plane, row])
            if dropped.size:
                if threshold:
                    _and_(prob, keep)
                _store(prob, dropped[plane, row])
