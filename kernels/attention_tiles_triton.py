"""What the fused attention kernels share: tile sizes, the order of programs, loads, and the host's checks.

Shapes: q query and k key positions, b micro-batch, g head groups, n query heads a group, d head size, padded to a power
of two, 16 or more. Rows are query, columns key positions; element (i, j) is live where column_offset + j <=
row_offset + i. Tiles lie on the mask's global grid of 16 rows and 64 columns (dropout_mask_triton), so at other offsets
the first ones hang over the tensor's edge, as the last ones do where a size is no multiple of the tile's.

Tiles that are live and inside throughout have a loop of their own, without a comparison; all others share a second one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import driver

from megaselect.kernels.limits import MAX_FUSED_HEAD_SIZE

if TYPE_CHECKING:
    from megaselect.kernels.dropout_mask import Plane

LOG2_E = math.log2(math.e)
CACHE_BYTES = 24 << 20  # keys and values that programs in flight may share: half of a Hopper's second-level cache
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Values that change from run to run, layer to layer, rank to rank or with the layout must not each compile a kernel.
SCALARS = (
    "seed_low", "seed_high", "site", "batch", "heads", "rows", "columns", "row_offset", "column_offset",
    "together",
)  # fmt: skip
QUERY_STRIDES = ("query_row", "query_batch", "query_group", "query_slot")
KEY_STRIDES = ("key_row", "key_batch", "key_group")  # and of value


class Tile(NamedTuple):
    """Rows and columns of a score tile, warps of a program, and how many tiles are in flight from memory.

    edge_stages: the same for the loop over tiles that need comparisons; registers: the most that a thread may have.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    edge_stages: int
    registers: int | None = None

    @property
    def launch(self) -> dict[str, int | None]:
        """Keyword arguments of a kernel's launch."""
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "EDGE_STAGES": self.edge_stages,
            "num_warps": self.warps,
            "num_stages": self.stages,
            "maxnreg": self.registers,
        }


# (kernel, padded head size, bytes an element) -> tile. Fixed, because tiles set the order of sums: nothing is tuned at
# run time, and dropout or what a run recomputes is no key. Chosen so that registers suffice without spills. In fp32,
# which has no matrix instructions at full precision, sums of products are unrolled: larger tiles would spill.
WIDE_TILES = {
    **{("forward", d, 4): Tile(16, 64, 8, 1, 1) for d in (16, 32, 64, 128)},
    **{("grad_key_value", d, 4): Tile(16, 64, 8, 1, 1, 168) for d in (16, 32)},
    **{("grad_key_value", d, 4): Tile(16, 64, 16, 1, 1) for d in (64, 128)},
    **{("grad_query", d, 4): Tile(16, 64, 8, 1, 1, 168) for d in (16, 32, 64, 128)},
}
HOPPER_TILES = {
    # 128 registers, so that a multiprocessor runs two programs: one multiplies while the other makes probs and masks.
    **{("forward", d, 2): Tile(128, 64, 8, 3, 3, 128) for d in (16, 32, 64)},
    ("forward", 128, 2): Tile(128, 64, 8, 3, 1),
    **{("grad_key_value", d, 2): Tile(64, 128, 8, 2, 1) for d in (16, 32, 64)},
    ("grad_key_value", 128, 2): Tile(32, 128, 8, 3, 2),
    **{("grad_query", d, 2): Tile(128, 64, 8, 2, 2) for d in (16, 32, 64, 128)},
    **WIDE_TILES,
}
AMPERE_TILES = {  # and any other architecture: at most 99 KiB of shared memory
    **{("forward", d, 2): Tile(128, 64, 8, 2, 2, 168) for d in (16, 32)},
    **{("forward", d, 2): Tile(128, 64, 8, 2, 2) for d in (64, 128)},
    **{("grad_key_value", d, 2): Tile(32, 128, 8, 2, 1) for d in (16, 32, 64)},
    ("grad_key_value", 128, 2): Tile(32, 64, 8, 2, 2),
    ("grad_query", 16, 2): Tile(128, 64, 8, 2, 2, 168),
    **{("grad_query", d, 2): Tile(128, 64, 8, 2, 2) for d in (32, 64)},
    ("grad_query", 128, 2): Tile(64, 64, 8, 2, 2),
    **WIDE_TILES,
}


@triton.jit
def plane_and_tile(tiles, planes, together):
    """(plane, tile) of a program: `together` planes at a time, so that what their programs read stays in the cache."""
    program = tl.program_id(0)
    first = program // (together * tiles) * together
    here = tl.minimum(planes - first, together)
    within = program % (together * tiles)
    return first + within % here, within // here


@triton.jit
def tile_offsets(stride, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """int32 [BLOCK, BLOCK_D]: the elements of a tile, counted from its first one."""
    return tl.arange(0, BLOCK)[:, None] * stride + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_tile(
    corner, stride, start, size, MASKED: tl.constexpr, HEAD_SIZE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[BLOCK, BLOCK_D] from position `start`; with MASKED, zeros at positions outside of [0, size)."""
    pointers = corner + tl.cast(start, tl.int64) * stride + tile_offsets(stride, BLOCK, BLOCK_D)
    position = start + tl.arange(0, BLOCK)[:, None]
    channel = tl.arange(0, BLOCK_D)[None, :]
    if MASKED:
        return tl.load(pointers, mask=(position >= 0) & (position < size) & (channel < HEAD_SIZE), other=0.0)
    elif HEAD_SIZE < BLOCK_D:
        return tl.load(pointers, mask=channel < HEAD_SIZE, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def own_positions(start, size, BLOCK: tl.constexpr):
    """int32 [BLOCK]: the positions of a program's own tile, those outside replaced by the nearest inside.

    What comes of the replaced ones is not saved. A comparison would stay in registers until the store.
    """
    return tl.maximum(tl.minimum(start + tl.arange(0, BLOCK), size - 1), 0)


@triton.jit
def load_own_tile(
    corner, stride, start, size, HEAD_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """[BLOCK, BLOCK_D] at `own_positions`."""
    channel = tl.arange(0, BLOCK_D)[None, :]
    pointers = corner + own_positions(start, size, BLOCK).to(tl.int64)[:, None] * stride + channel
    if HEAD_SIZE < BLOCK_D:
        return tl.load(pointers, mask=channel < HEAD_SIZE, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_tile(
    corner, stride, start, size, values, HEAD_SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr
):
    pointers = corner + tl.cast(start, tl.int64) * stride + tile_offsets(stride, BLOCK, BLOCK_D)
    position = start + tl.arange(0, BLOCK)[:, None]
    inside = (position >= 0) & (position < size) & (tl.arange(0, BLOCK_D)[None, :] < HEAD_SIZE)
    tl.store(pointers, values.to(corner.dtype.element_ty), mask=inside)


@triton.jit
def column_tiles(
    first_row, rows, columns, row_offset, column_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """(all, first, last): row tile `first_row` (local) has live columns in tiles 0..all, throughout in first..last."""
    lead = column_offset % 64
    before = row_offset - column_offset
    live = tl.minimum(tl.minimum(first_row + BLOCK_M, rows) + before, columns)  # columns of the last row
    count = tl.where(live > 0, tl.cdiv(live + lead, BLOCK_N), 0)
    first = tl.minimum((lead + BLOCK_N - 1) // BLOCK_N, count)  # 1 where tile 0 hangs over the edge
    shortest = tl.maximum(tl.minimum(first_row + before + 1, columns), 0)  # columns of the first row
    return count, first, tl.maximum((shortest + lead) // BLOCK_N, first)


@triton.jit
def live_elements(
    first_row, first_column, columns, row_offset, column_offset, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Bool [BLOCK_M, BLOCK_N] from local positions, by one comparison an element: as unsigned, -1 is a high column."""
    live = first_row + tl.arange(0, BLOCK_M) + (row_offset - column_offset + 1)  # columns of each row
    live = tl.maximum(tl.minimum(live, columns), 0).to(tl.uint32)
    column = (first_column + tl.arange(0, BLOCK_N)).to(tl.uint32)
    return column[None, :] < live[:, None]


def padded_head_size(head_size: int) -> int:
    return max(triton.next_power_of_2(head_size), 16)


def tile_for(kernel: str, head_size: int, element_bytes: int) -> Tile:
    """The tile of "forward", "grad_key_value" or "grad_query" on the GPU that is in use."""
    tiles = HOPPER_TILES if _capability() == 90 else AMPERE_TILES
    return tiles[kernel, padded_head_size(head_size), element_bytes]


def _capability() -> int:
    if isinstance(plane_and_tile, triton.runtime.JITFunction):
        return driver.active.get_current_target().arch
    return 90  # the interpreter has no driver


def planes_together(planes: int, key: Tensor) -> int:
    """How many planes' keys and values fit the cache. Only the order of programs depends on it."""
    plane_bytes = 2 * key.shape[0] * key.shape[-1] * key.element_size()
    return min(max(CACHE_BYTES // max(plane_bytes, 1), 1), max(planes, 1))


def strides(tensor: Tensor, unit: int) -> list[int]:
    """In units, but for the last; 0 where there is nothing to step over."""
    return [s // unit if n > 1 else 0 for s, n in zip(tensor.stride()[:-1], tensor.shape[:-1], strict=True)]


def access_unit(*tensors: Tensor) -> int:
    """The largest power of two of elements, up to 16 bytes, that divides every stride: what a thread reads at once."""
    steps = (step for tensor in tensors for step in strides(tensor, 1))
    return math.gcd(16 // tensors[0].element_size(), *steps)


def alike(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same strides, copied where they are not: one set of offsets saves the kernels registers."""
    return (key, value) if key.stride() == value.stride() else (key.contiguous(), value.contiguous())


def check(query: Tensor, key: Tensor, value: Tensor, plane: Plane, scale: float) -> None:
    """Raises ValueError for what the kernels cannot do."""
    head_size = query.shape[-1]
    if not 1 <= head_size <= MAX_FUSED_HEAD_SIZE:
        raise ValueError(
            f"head size {head_size} (query {tuple(query.shape)}) is outside of 1 to {MAX_FUSED_HEAD_SIZE}: "
            "use --attention unfused or --kernel-backend torch"
        )
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(
            f"query, key and value are {query.dtype}, {key.dtype} and {value.dtype}, but must have one dtype of "
            f"{', '.join(map(str, DTYPES))}"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale = {scale} must be positive and finite")
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if head_size > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} has strides {tensor.stride()}, but the last must be 1: make it contiguous")
        if max(strides(tensor, 1), default=0) >= 1 << 31 or tensor.stride(0) >= 1 << 24:
            raise ValueError(f"{name} {tuple(tensor.shape)} has strides {tensor.stride()}, too large for the kernels")
