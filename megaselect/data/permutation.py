"""A permutation of range(n) as a pure function: nothing of size n is stored, any element costs the same to find.

A Feistel network permutes the numbers of 2k bits, whatever its round function; its key decides which permutation it is.
Values that land outside range(n) are sent through again until they land inside (cycle walking; Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002). As 4**k < 4n, that takes fewer than four passes on average.
"""

from typing import TypeVar

import numpy as np

_MASK64 = 2**64 - 1
_NUM_ROUNDS = 6

_Unsigned = TypeVar("_Unsigned", int, np.ndarray)


def permute(indices: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where the permutation of range(size) chosen by `key` (any integers) sends each of `indices` [n], as int64 [n].

    0 <= indices < size <= 2**62. Thousands at a time cost a fraction of what they cost one by one.
    """
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(key)
    images = _feistel(np.asarray(indices, np.uint64), half_bits, round_keys)
    while (outside := images >= size).any():
        images[outside] = _feistel(images[outside], half_bits, round_keys)
    return images.astype(np.int64)


def _feistel(value: np.ndarray, half_bits: int, round_keys: list[int]) -> np.ndarray:
    mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return left << half_bits | right


def _round_keys(key: tuple[int, ...]) -> list[int]:
    state = 0
    for part in key:
        state = _mix(state ^ (part & _MASK64))
    return [_mix(state + number) for number in range(1, _NUM_ROUNDS + 1)]


def _mix(value: _Unsigned) -> _Unsigned:
    """Finalizer of splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of `value`.

    Arrays are uint64, where the masks, which Python's integers need, change nothing.
    """
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
