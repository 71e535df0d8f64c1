"""The dropout mask in NumPy, where Numba is not installed; dropout_mask.py has the definition and the shapes.

It beats torch: int64 torch operations need one pass more each to mask the sign that an arithmetic shift drags along.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from megaselect.kernels.dropout_mask import (
    PHILOX_KEY_STEPS,
    PHILOX_MULTIPLIERS,
    PHILOX_ROUNDS,
    TILE_COLUMNS,
    TILE_ROWS,
    Plane,
)

WORDS_PER_CHUNK = 1 << 14  # large enough to amortise NumPy's call, small enough for a core's second-level cache


def fill_keep(keep: Tensor, samples: Tensor, plane: Plane, planes: int, causal: bool) -> None:
    """Write the keep masks of all planes, int8 [b*planes, rows, columns], by rectangles that fit a cache.

    One thread: a second one gains nothing, as short NumPy calls spend their time waiting for the interpreter lock.
    """
    if plane.threshold == 0:
        keep.fill_(-1)
    else:
        into, numbers = keep.zero_().numpy(), samples.tolist()
        for rectangle in _rectangles(keep.shape, plane, causal):
            _fill_rectangle(into, numbers, plane, planes, rectangle)
    if causal:
        live = torch.full(keep.shape[1:], -1, dtype=torch.int8).tril_(plane.row_offset - plane.column_offset)
        keep.bitwise_and_(live)  # tril_ on all planes would take ten times as long


class _Rectangle(NamedTuple):
    """Planes [plane_start, plane_stop) and global rows and columns, starting on tiles, that are computed at once."""

    plane_start: int
    plane_stop: int
    row_start: int
    row_stop: int
    column_start: int
    column_stop: int


def _rectangles(shape: tuple[int, ...], plane: Plane, causal: bool) -> Iterator[_Rectangle]:
    """Cut the planes into cache-sized rectangles, leaving out the dead tiles of causal planes."""
    planes, rows, columns = shape
    row_start = plane.row_offset // TILE_ROWS * TILE_ROWS
    row_stop = plane.row_offset + rows
    column_stop = plane.column_offset + columns
    column = plane.column_offset // TILE_COLUMNS * TILE_COLUMNS
    width = TILE_COLUMNS if causal else max(column_stop - column, 1)
    while column < column_stop:
        stop = min(column + width, column_stop)
        first_row = max(row_start, column // TILE_ROWS * TILE_ROWS) if causal else row_start
        words_per_row = -(-(stop - column) // TILE_COLUMNS) * 4
        band = max(WORDS_PER_CHUNK // (words_per_row * 8), 1) * TILE_ROWS
        for row in range(first_row, row_stop, band):
            words = words_per_row * (min(band, row_stop - row) + TILE_ROWS - 1) // TILE_ROWS * 8
            together = max(WORDS_PER_CHUNK // words, 1)
            for first in range(0, planes, together):
                yield _Rectangle(
                    first, min(first + together, planes), row, min(row + band, row_stop), column, column + width
                )
        column += width


def _fill_rectangle(keep: np.ndarray, samples: Sequence[int], plane: Plane, planes: int, rectangle: _Rectangle) -> None:
    index = range(rectangle.plane_start, rectangle.plane_stop)
    sample = np.array([samples[k // planes] & 0xFFFFFFFF for k in index], np.uint64)
    site = np.array([plane.site + k % planes for k in index], np.uint64)
    words = _drop_words(sample, site, plane, rectangle)
    tile = _expand(words)
    row, column = rectangle.row_start - plane.row_offset, rectangle.column_start - plane.column_offset
    target = keep[rectangle.plane_start : rectangle.plane_stop, max(row, 0) :, max(column, 0) :]
    source = tile[:, max(-row, 0) :, max(-column, 0) :]
    height = min(target.shape[1], source.shape[1], rectangle.row_stop - plane.row_offset - max(row, 0))
    width = min(target.shape[2], source.shape[2])
    target[:, :height, :width] = source[:, :height, :width]


def _drop_words(sample: np.ndarray, site: np.ndarray, plane: Plane, rectangle: _Rectangle) -> np.ndarray:
    """uint64 [planes, row tiles, 8, column tiles, 4] whose low 32 bits are 1 with probability t/256."""
    row_tiles = np.arange(rectangle.row_start // TILE_ROWS, -(-rectangle.row_stop // TILE_ROWS))
    column_tiles = np.arange(rectangle.column_start // TILE_COLUMNS, -(-rectangle.column_stop // TILE_COLUMNS))
    c0 = (row_tiles[:, None] * 8 + np.arange(8)).reshape(-1, 1).astype(np.uint64)
    c1 = (column_tiles[:, None] * 4 + np.arange(4)).reshape(1, -1).astype(np.uint64)
    lowest = (plane.threshold & -plane.threshold).bit_length() - 1  # below the lowest 1 of t the fold is `0 & word`
    halves = np.arange(lowest // 4, 2, dtype=np.uint64)[:, None, None, None]
    c3 = site[:, None, None] * np.uint64(2) + halves
    words = philox(c0, c1, sample[:, None, None], c3, plane.seed)
    folded = [words[place % 4][place // 4 - lowest // 4] for place in range(lowest, 8)]
    drop = folded[0]
    for place, word in enumerate(folded[1:], lowest + 1):
        fold = np.bitwise_or if plane.threshold >> place & 1 else np.bitwise_and
        fold(drop, word, out=drop)
    return drop.reshape(len(sample), len(row_tiles), 8, len(column_tiles), 4)


def philox(c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray, seed: int) -> list[np.ndarray]:
    """Four uint64 arrays of 32-bit words from broadcastable counters, keyed by the 64-bit seed.

    Counters keep the shape they depend on as long as they can: rows, columns and planes meet only in rounds 2 and 3.
    """
    shape = np.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    multiply_0, multiply_1 = (np.uint64(m) for m in PHILOX_MULTIPLIERS)
    key_0, key_1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for rounds_done in range(PHILOX_ROUNDS):
        product_0, product_1 = c0 * multiply_0, c2 * multiply_1
        full = rounds_done > 3  # from here on every counter has the full shape and is overwritten in place
        c0 = np.right_shift(product_1, shift, out=c0 if full else None)
        c0 = np.bitwise_xor(c0, c1, out=c0 if full else None)
        c0 ^= np.uint64(key_0)
        c2 = np.right_shift(product_0, shift, out=c2 if full else None)
        c2 = np.bitwise_xor(c2, c3, out=c2 if full else None)
        c2 ^= np.uint64(key_1)
        c1 = np.bitwise_and(product_1, low, out=product_1)
        c3 = np.bitwise_and(product_0, low, out=product_0)
        key_0 = (key_0 + PHILOX_KEY_STEPS[0]) & 0xFFFFFFFF
        key_1 = (key_1 + PHILOX_KEY_STEPS[1]) & 0xFFFFFFFF
    return [np.broadcast_to(c, shape) if c.shape != shape else c for c in (c0, c1, c2, c3)]


def _expand(words: np.ndarray) -> np.ndarray:
    """int8 [planes, 16 * row tiles, 64 * column tiles], -1 where kept, from what `_drop_words` returns."""
    spread, expand = _tables()
    planes, row_tiles, _, column_tiles, _ = words.shape
    packed = np.empty((planes, row_tiles, 2, 8, column_tiles), np.uint64)  # byte k holds columns 8k..8k+7
    for half in range(2):
        bits = np.take(spread, words >> np.uint64(16 * half) & np.uint64(0xFFFF))
        bits <<= np.arange(0, 8, 2, dtype=np.uint64)
        np.bitwise_or(bits[..., 0], bits[..., 1], out=packed[:, :, half])
        bits[..., 2] |= bits[..., 3]
        packed[:, :, half] |= bits[..., 2]
    keep = np.take(expand, packed.view(np.uint8))
    return keep.view(np.int8).reshape(planes, row_tiles * TILE_ROWS, column_tiles * TILE_COLUMNS)


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """spread: 16 bits (2k + e) -> a word with bit e of pair k at 8k + e. expand: see expanded_bytes."""
    half_words = np.arange(1 << 16, dtype=np.uint64)
    spread = np.zeros(1 << 16, np.uint64)
    for k in range(8):
        spread |= (half_words >> np.uint64(2 * k) & np.uint64(3)) << np.uint64(8 * k)
    return spread, expanded_bytes()


def expanded_bytes() -> np.ndarray:
    """uint64 [256]: 8 drop bits -> 8 bytes, -1 where kept."""
    dropped = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (dropped.astype(np.int8) - 1).view(np.uint64).reshape(256)
