"""Plain-torch fallback of the flash-style attention kernels: the same maths and rounding points, on any device.

Shapes: q query and k key positions, b micro-batch, g groups of n query heads (a = g*n), d head size; a tile has r rows
of c heads against all their live keys. It works tile by tile, so memory grows with s, not s². The tile's products are
fp32 from values of the compute dtype, as a matrix unit's; probs and score gradients are rounded to the compute dtype
before they enter a product.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megaselect.kernels.dropout_mask import TILE_ROWS, Plane, keep_planes, keep_scale
from megaselect.kernels.fallback import LOG2_E, and_keep, wide_dtype

ELEMENTS_PER_TILE = {"cpu": 1 << 18, "cuda": 1 << 24}  # of scores; on a CPU about what a core's cache holds


class _Tile(NamedTuple):
    """Rows [first, last) of heads in groups [group, group_end) of one sample, and how many keys they can see."""

    sample: int
    group: int
    group_end: int
    first: int
    last: int
    keys: int


def forward(
    query: Tensor, key: Tensor, value: Tensor, sample_index: Tensor, plane: Plane, scale: float
) -> tuple[Tensor, Tensor]:
    """(context [q, b, a*d], log_sum_exp fp32 [b, a, q]); query [q, b, g, n, d], key and value [k, b, g, d].

    log_sum_exp is in base 2, of the scaled scores times log2(e); infinite where a row sees no key (context 0).
    """
    rows, batch, groups, shared, head_size = query.shape
    wide = wide_dtype(query.dtype)
    context = query.new_zeros(rows, batch, groups, shared, head_size)
    log_sum_exp = query.new_full((batch, groups, shared, rows), torch.inf, dtype=wide)
    samples = sample_index.cpu()
    for tile in _tiles(query, key, plane):
        scores = _scores(tile, query, key, plane, scale)
        highest = scores.amax(-1, keepdim=True)
        highest.masked_fill_(highest == -torch.inf, 0)  # a row that sees nothing
        exponentials = scores.sub_(highest).exp2_()
        sums = exponentials.sum(-1, keepdim=True)
        rounded = _rounded(exponentials, query.dtype)
        if plane.threshold:
            and_keep(rounded, _keep(tile, query, samples, plane), out=rounded)
        out = torch.bmm(rounded, _keys(tile, value, shared)).mul_(keep_scale(plane.threshold) / sums)
        _rows(tile, context).copy_(_ungrouped(out.masked_fill_(sums == 0, 0), shared))
        found = highest.add_(sums.log2()).masked_fill_(sums == 0, torch.inf)
        log_sum_exp[tile.sample, tile.group : tile.group_end, :, tile.first : tile.last] = found.view(
            -1, shared, tile.last - tile.first
        )
    return context.view(rows, batch, -1), log_sum_exp.view(batch, groups * shared, rows)


def backward(
    grad_context: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    context: Tensor,
    log_sum_exp: Tensor,
    sample_index: Tensor,
    plane: Plane,
    scale: float,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    """Writes grad_query, grad_key and grad_value, strided views shaped like query, key and value."""
    rows, batch, groups, shared, head_size = query.shape
    wide, kept_scale = wide_dtype(query.dtype), keep_scale(plane.threshold)
    by_head = (rows, batch, groups, shared, head_size)
    grad_context, context = grad_context.view(by_head), context.view(by_head)
    log_sum_exp = log_sum_exp.view(batch, groups, shared, rows)
    grad_query.zero_()  # rows that see no key belong to no tile
    sums = [torch.zeros(batch, groups, key.shape[0], head_size, dtype=wide, device=key.device) for _ in "kv"]
    samples = sample_index.cpu()
    for tile in _tiles(query, key, plane):
        grad_out = _queries(tile, grad_context)
        delta = (grad_out * _queries(tile, context)).sum(-1, keepdim=True)
        statistics = log_sum_exp[tile.sample, tile.group : tile.group_end, :, tile.first : tile.last]
        probs = _scores(tile, query, key, plane, scale).sub_(statistics.reshape(*delta.shape)).exp2_()
        grad_probs = torch.bmm(grad_out, _keys(tile, value, shared).transpose(1, 2))
        dropped = _rounded(probs, query.dtype, copy=True)
        if plane.threshold:
            keep = _keep(tile, query, samples, plane)
            and_keep(dropped, keep, out=dropped)
            and_keep(grad_probs, keep, out=grad_probs)
        grad_scores = _rounded(grad_probs.mul_(kept_scale).sub_(delta).mul_(probs), query.dtype)
        grad_rows = torch.bmm(grad_scores, _keys(tile, key, shared)).mul_(scale)
        _rows(tile, grad_query).copy_(_ungrouped(grad_rows, shared))
        for total, weights, right in zip(sums, (grad_scores, dropped), (_queries(tile, query), grad_out), strict=True):
            products = torch.bmm(weights.transpose(1, 2), right).unflatten(0, (-1, shared)).sum(1)
            total[tile.sample, tile.group : tile.group_end, : tile.keys] += products
    for grad, total, factor in ((grad_key, sums[0], scale), (grad_value, sums[1], kept_scale)):
        grad.copy_(total.mul_(factor).permute(2, 0, 1, 3))


def _tiles(query: Tensor, key: Tensor, plane: Plane) -> Iterator[_Tile]:
    """The tiles of all rows that see a key; row blocks end on the mask's grid."""
    rows, batch, groups, shared, _ = query.shape
    budget = ELEMENTS_PER_TILE.get(query.device.type, 1 << 24)
    height = min(max(budget // (key.shape[0] * shared) // TILE_ROWS * TILE_ROWS, TILE_ROWS), rows)
    width = min(max(budget // (key.shape[0] * shared * height), 1), groups)
    for sample in range(batch):
        for group in range(0, groups, width):
            for first in range(0, rows, height):
                last = min(first + height, rows)
                keys = min(last + plane.row_offset - plane.column_offset, key.shape[0])
                if keys > 0:
                    yield _Tile(sample, group, min(group + width, groups), first, last, keys)


def _rows(tile: _Tile, tensor: Tensor) -> Tensor:
    """The tile's part of [q, b, g, n, d], as [r, c/n, n, d]: a view."""
    return tensor[tile.first : tile.last, tile.sample, tile.group : tile.group_end]


def _queries(tile: _Tile, tensor: Tensor) -> Tensor:
    """The tile's part of [q, b, g, n, d], wide, as [c, r, d]."""
    return _rows(tile, tensor).permute(1, 2, 0, 3).flatten(0, 1).to(wide_dtype(tensor.dtype))


def _ungrouped(by_head: Tensor, shared: int) -> Tensor:
    """[r, c/n, n, d] from [c, r, d]."""
    return by_head.unflatten(0, (-1, shared)).permute(2, 0, 1, 3)


def _keys(tile: _Tile, tensor: Tensor, shared: int) -> Tensor:
    """The live part of [k, b, g, d], wide, once for each query head that shares it: [c, keys, d]."""
    live = tensor[: tile.keys, tile.sample, tile.group : tile.group_end].transpose(0, 1)
    return (
        live.to(wide_dtype(tensor.dtype)).repeat_interleave(shared, 0)
        if shared > 1
        else live.to(wide_dtype(tensor.dtype))
    )


def _scores(tile: _Tile, query: Tensor, key: Tensor, plane: Plane, scale: float) -> Tensor:
    """[c, r, keys]: scaled scores times log2(e), -inf where dead."""
    left, right = _queries(tile, query), _keys(tile, key, query.shape[3])
    scores = torch.baddbmm(left.new_empty(1, 1, 1), left, right.transpose(1, 2), beta=0, alpha=scale * LOG2_E)
    before = plane.row_offset - plane.column_offset + tile.first  # keys that the row above the tile sees
    live = min(max(before + 1, 0), tile.keys)  # those that every row of the tile sees
    edge = scores[:, :, live:]
    edge.add_(torch.full_like(edge[0], -torch.inf).triu_(before + 1 - live))
    return scores


def _keep(tile: _Tile, query: Tensor, samples: Tensor, plane: Plane) -> Tensor:
    """int8 [c, r, keys] on the query's device, -1 where kept and live."""
    shared = query.shape[3]
    part = plane._replace(site=plane.site + tile.group * shared, row_offset=plane.row_offset + tile.first)
    heads = (tile.group_end - tile.group) * shared
    sample = samples[tile.sample : tile.sample + 1]
    return keep_planes(sample, part, heads, tile.last - tile.first, tile.keys, causal=True)[0].to(query.device)


def _rounded(tensor: Tensor, dtype: torch.dtype, copy: bool = False) -> Tensor:
    """The wide tensor with values that the dtype holds; itself where it holds all of them."""
    if tensor.dtype == dtype:
        return tensor.clone() if copy else tensor
    return tensor.to(dtype).to(tensor.dtype)
