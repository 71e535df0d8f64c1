"""Megatron-LM's indexed dataset: PREFIX.bin holds token ids back to back, PREFIX.idx says where each sequence lies.

Layout of the index, little-endian throughout (megatron/core/datasets/indexed_dataset.py):

    9 bytes  magic b"MMIDIDX\\0\\0"
    u64      version, 1
    u8       code of the token dtype
    u64 u64  N sequences, D document bounds
    N x i32  length of each sequence, in tokens
    N x i64  offset of each sequence in PREFIX.bin, in bytes
    D x i64  document bounds: document i is sequences [bounds[i], bounds[i + 1]); first 0, last N
    N x i8   modes; multimodal datasets only, ignored here
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from megaselect.data.os_errors import explain_os_errors
from megaselect.errors import DataError

_MAGIC = b"MMIDIDX\0\0"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_TOKEN_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_FLOAT_DTYPES = {6: "float64", 7: "float32"}
_CODE_OF_DTYPE = {np.dtype(name): code for code, name in _TOKEN_DTYPES.items()}

_INDEX_PART = 2**16  # sequences that are written at a time


class Index(NamedTuple):
    dtype: np.dtype
    lengths: np.ndarray  # [N] i32, tokens
    offsets: np.ndarray  # [N] i64, bytes
    bounds: np.ndarray  # [D] i64, sequences


def read_index(path: Path, bin_path: Path) -> Index:
    """The index at `path`, whose sequences all lie in the file at `bin_path`. Raises DataError where they do not.

    Memory is bounded by the size of the index, whatever the numbers in it say.
    """
    with explain_os_errors("read the dataset", "name one whose .bin and .idx can be read"):
        return _read_index(path, bin_path)


def _read_index(path: Path, bin_path: Path) -> Index:
    size = path.stat().st_size
    if size < _HEADER.size:
        raise DataError(f"{path} has {size} bytes, less than the header of an index; it was cut short: write it again")
    with path.open("rb") as file:
        magic, version, code, num_sequences, num_bounds = _HEADER.unpack(file.read(_HEADER.size))
    _check_header(path, magic, version, code)
    expected = _HEADER.size + 12 * num_sequences + 8 * num_bounds
    if size not in (expected, expected + num_sequences):
        raise DataError(
            f"{path} has {size} bytes, but an index of {num_sequences} sequences and {num_bounds} document bounds "
            f"has {expected}; it is damaged: write it again"
        )
    raw = np.memmap(path, np.uint8, mode="r")
    at = _HEADER.size
    lengths = np.frombuffer(raw, "<i4", num_sequences, at)
    offsets = np.frombuffer(raw, "<i8", num_sequences, at + 4 * num_sequences)
    bounds = np.frombuffer(raw, "<i8", num_bounds, at + 12 * num_sequences)
    _check_bounds(path, bounds, num_sequences)
    if not lengths.any():
        raise DataError(f"{path} lists not one token; write it again from text that is not empty")
    index = Index(np.dtype(_TOKEN_DTYPES[code]), lengths, offsets, bounds)
    _check_offsets(index, path, bin_path)
    return index


def _check_header(path: Path, magic: bytes, version: int, code: int) -> None:
    if magic != _MAGIC:
        raise DataError(
            f"{path} starts with {magic!r}, not with {_MAGIC!r}: it is no index of Megatron-LM's indexed dataset; "
            "write one with `megaselect data prepare`"
        )
    if version != _VERSION:
        raise DataError(f"{path} has version {version}, but only version {_VERSION} can be read; convert it first")
    if code in _FLOAT_DTYPES:
        raise DataError(f"{path} holds {_FLOAT_DTYPES[code]} values (dtype code {code}), but token ids are integers")
    if code not in _TOKEN_DTYPES:
        known = ", ".join(str(known) for known in _TOKEN_DTYPES)
        raise DataError(
            f"{path} has dtype code {code}, but token ids have one of {known}; it is damaged: write it again"
        )


def _check_bounds(path: Path, bounds: np.ndarray, num_sequences: int) -> None:
    if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != num_sequences or (bounds[1:] < bounds[:-1]).any():
        shown = f"from {bounds[0]} to {bounds[-1]}" if len(bounds) else "none"
        raise DataError(
            f"{path} has document bounds ({shown}) that do not rise from 0 to its {num_sequences} sequences; "
            "it is damaged: write it again"
        )


def _check_offsets(index: Index, idx_path: Path, bin_path: Path) -> None:
    itemsize = index.dtype.itemsize
    wrong = (index.lengths < 0) | (index.offsets < 0) | (index.offsets % itemsize != 0)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{idx_path} puts sequence {first} at byte {index.offsets[first]} with {index.lengths[first]} tokens of "
            f"{itemsize} bytes, which cannot be; it is damaged: write it again"
        )
    size = bin_path.stat().st_size
    # Room is compared, not ends: an offset near 2**63 plus a length would wrap round to a small number.
    beyond = size - index.offsets < index.lengths.astype(np.int64) * itemsize
    if beyond.any():
        first = int(np.argmax(beyond))
        raise DataError(
            f"{bin_path} has {size} bytes, but {idx_path} puts sequence {first} at byte {index.offsets[first]} with "
            f"{index.lengths[first]} tokens of {itemsize} bytes; the two do not belong together or the .bin was cut "
            "short: write both again"
        )


def write_index(file: BinaryIO, dtype: np.dtype, lengths: np.ndarray, continued: Sequence[int] = ()) -> None:
    """Write the .idx of sequences that lie back to back in a .bin of `dtype`, in memory of a fixed size.

    lengths: [N] i32, tokens of each sequence; a memmap will do.
    continued: rising numbers of the sequences that go on with the document before them, where it is too long for one.
    """
    num_bounds = len(lengths) - len(continued) + 1
    file.write(_HEADER.pack(_MAGIC, _VERSION, _CODE_OF_DTYPE[dtype], len(lengths), num_bounds))
    parts = [slice(start, start + _INDEX_PART) for start in range(0, len(lengths), _INDEX_PART)]
    for part in parts:
        file.write(lengths[part].astype("<i4").tobytes())
    offset = 0
    for part in parts:
        ends = offset + np.cumsum(lengths[part], dtype="<i8") * dtype.itemsize  # bytes
        file.write(np.concatenate(([offset], ends[:-1])).astype("<i8").tobytes())
        offset = int(ends[-1])
    for part in parts:
        sequences = np.arange(part.start, min(part.stop, len(lengths)), dtype="<i8")
        file.write(np.setdiff1d(sequences, continued, assume_unique=True).tobytes())
    file.write(np.int64(len(lengths)).astype("<i8").tobytes())
