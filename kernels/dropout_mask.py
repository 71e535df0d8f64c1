"""The dropout mask as a pure function of (seed, sample, site, row, column), on the CPU by Numba or NumPy.

Shapes: b samples, n planes (sites that follow one another, e.g. heads), s rows, c columns of a plane.

A bit-sliced Philox4x32-10 (Salmon et al. 2011): each counter yields words whose 32 bits serve rows {r, r+8} x columns
{8k+2g, 8k+2g+1} of a 16 x 64 tile; eight words are folded by the bits of t into one whose bits are each 1 (dropped)
with probability t/256, exactly. docs/dropout-mask.md has the definition. The layout is the one that a GPU thread holds
of a matrix-unit accumulator, so the Triton kernels expand it without a shuffle.

Numba and NumPy are imported where the CPU needs them, so that a GPU needs torch and triton alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from megaselect.kernels.backend import has_numba
from megaselect.kernels.cpu_threads import in_parts

if TYPE_CHECKING:
    import numpy as np

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10
TILE_ROWS, TILE_COLUMNS = 16, 64

EMBEDDING_SITE = 2**31 - 1
SITES_PER_LAYER = 4096
ATTENTION_PROJECTION_SITE, MLP_SITE = 4000, 4001


class Plane(NamedTuple):
    """Which random bits a plane reads: what the mask is a function of, apart from sample, row and column."""

    seed: int
    site: int
    threshold: int
    row_offset: int = 0
    column_offset: int = 0


def drop_threshold(dropout_p: float) -> int:
    """t in 0..255: elements are dropped with probability exactly t/256. Raises ValueError where no t fits."""
    threshold = math.floor(256 * dropout_p + 0.5) if 0 <= dropout_p < 1 else -1
    if not 0 <= threshold <= 255 or (threshold == 0 and dropout_p > 0):
        raise ValueError(f"dropout_p = {dropout_p} has no multiple of 1/256 in [0, 1); use 0 or 0.002 to 0.998")
    return threshold


def keep_scale(threshold: int) -> float:
    """What kept values are multiplied by so that the expectation is unbiased: 256/(256 - t)."""
    return 256 / (256 - threshold)


def signed_seed(seed: int) -> int:
    """The same 64 bits as a signed integer, which is what an operator's schema can carry."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def unsigned_seed(seed: int) -> int:
    """The inverse of `signed_seed`."""
    return seed & 0xFFFFFFFFFFFFFFFF


def drop_mask(
    seed: int,
    sample: int,
    site: int,
    rows: int,
    cols: int,
    dropout_p: float,
    row0: int = 0,
    col0: int = 0,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Bool [rows, cols] on `device`, True where dropped, for rows row0.. and columns col0.. of the plane.

    seed is unsigned 64-bit; sample counts modulo 2**32; site is in [0, 2**31). Raises ValueError for a bad dropout_p.
    """
    plane = Plane(seed, site, drop_threshold(dropout_p), row0, col0)
    samples = torch.tensor([sample], dtype=torch.int64)
    if torch.device(device).type == "cuda":
        from megaselect.kernels.dropout_mask_triton import drop_mask_planes

        return drop_mask_planes(samples.to(device), plane, 1, rows, cols)[0, 0]
    return keep_planes(samples, plane, 1, rows, cols)[0, 0] == 0


def keep_planes(samples: Tensor, plane: Plane, planes: int, rows: int, columns: int, causal: bool = False) -> Tensor:
    """int8 [b, planes, rows, columns] on the CPU: -1 (all bits set) where kept, 0 where dropped.

    samples: int64 [b]. Plane p uses site + p. With `causal`, elements above the diagonal are 0 and cost nothing:
    column j is live in row i where column_offset + j <= row_offset + i.
    """
    keep = torch.empty(samples.numel(), planes, rows, columns, dtype=torch.int8)
    _fill_keep(keep.flatten(0, 1), samples, plane, planes, causal)
    return keep


def keep_hidden(samples: Tensor, plane: Plane, rows: int, columns: int) -> Tensor:
    """int8 [rows, b, columns] on the CPU, -1 where kept: the masks of a [s, b, h] activation, one plane a sample."""
    keep = torch.empty(rows, samples.numel(), columns, dtype=torch.int8)
    _fill_keep(keep.transpose(0, 1), samples, plane, 1, causal=False)
    return keep


def key_halves(seed: int) -> tuple[np.uint32, np.uint32]:
    """Philox's key, low half first."""
    import numpy as np

    return np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32 & 0xFFFFFFFF)


def _fill_keep(keep: Tensor, samples: Tensor, plane: Plane, planes: int, causal: bool) -> None:
    """Write the keep masks of all planes: keep is int8 [b*planes, rows, columns]."""
    if has_numba() and plane.threshold:
        from megaselect.kernels import numba_functions

        into, inputs = keep.numpy(), (samples.numpy(), planes, plane.site, *key_halves(plane.seed), *plane[2:], causal)
        in_parts(keep.shape[0], keep.numel(), lambda *part: numba_functions.fill_keep(into, *inputs, *part))
    else:
        from megaselect.kernels.dropout_mask_numpy import fill_keep

        fill_keep(keep, samples, plane, planes, causal)
