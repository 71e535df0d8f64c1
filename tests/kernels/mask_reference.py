"""An independent reference of the dropout mask, element by element in NumPy: slow and plain."""

import numpy as np


def philox4x32(counter: list[np.ndarray], seed: int, rounds: int = 10) -> list[np.ndarray]:
    """Philox4x32 (Salmon et al. 2011) of four broadcastable uint64 arrays that hold 32-bit counter words."""
    low = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    key = [seed % 2**32, seed // 2**32]
    for _ in range(rounds):
        first, second = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (second >> shift) ^ counter[1] ^ np.uint64(key[0]),
            second & low,
            (first >> shift) ^ counter[3] ^ np.uint64(key[1]),
            first & low,
        ]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return counter


def dropped(
    seed: int, sample: int, site: int, threshold: int, rows: int, cols: int, row0: int = 0, col0: int = 0
) -> np.ndarray:
    """Boolean [rows, cols], True where dropped, for global rows row0.. and columns col0.. of one plane."""
    i = np.arange(row0, row0 + rows, dtype=np.uint64)[:, None]
    j = np.arange(col0, col0 + cols, dtype=np.uint64)[None, :]
    words = []
    for half in (0, 1):
        counter = [i // 16 * 8 + i % 8, j // 64 * 4 + j % 8 // 2, np.uint64(sample % 2**32), np.uint64(2 * site + half)]
        words += philox4x32([np.broadcast_to(c, (rows, cols)) for c in counter], seed)
    drop = np.zeros((rows, cols), np.uint64)
    for b, word in enumerate(words):
        drop = drop | word if threshold >> b & 1 else drop & word
    bit = i % 16 // 8 * 16 + j % 64 // 8 * 2 + j % 2
    return (drop >> bit & np.uint64(1)).astype(bool)


def dropped_planes(
    seed: int,
    samples: list[int],
    site: int,
    planes: int,
    threshold: int,
    rows: int,
    cols: int,
    row0: int = 0,
    col0: int = 0,
) -> np.ndarray:
    """Boolean [samples, planes, rows, cols]: plane p of every sample at site + p."""
    return np.stack(
        [[dropped(seed, s, site + p, threshold, rows, cols, row0, col0) for p in range(planes)] for s in samples]
    )
