"""A permutation of range(n) as a pure function: nothing of size n is stored, any element costs the same to find.

A Feistel network permutes the numbers of 2k bits, whatever its round function; its key decides which permutation it is.
Values that land outside range(n) are sent through again until they land inside (cycle walking; Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002). As 4**k < 4n, that takes fewer than four passes on average.
"""

_MASK64 = 2**64 - 1
_NUM_ROUNDS = 6


def permute(index: int, size: int, key: tuple[int, ...]) -> int:
    """Where the permutation of range(size) chosen by `key` (any integers) sends `index`, 0 <= index < size."""
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    round_keys = _round_keys(key)
    index = _feistel(index, half_bits, round_keys)
    while index >= size:
        index = _feistel(index, half_bits, round_keys)
    return index


def _feistel(value: int, half_bits: int, round_keys: list[int]) -> int:
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


def _mix(value: int) -> int:
    """Finalizer of splitmix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of `value`."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
