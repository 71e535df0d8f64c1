"""Plain causal attention with dropout, head by head, whose masks come from the NumPy reference."""

import numpy as np
import torch
from mask_reference import dropped

from megaselect.kernels.dropout_mask import keep_scale


def keep_of(plane, sample, head, rows, columns):
    """[rows, columns], 1.0 where kept, from the reference."""
    place = (rows, columns, plane.row_offset, plane.column_offset)
    drop = dropped(plane.seed, int(sample), plane.site + head, plane.threshold, *place)
    return torch.from_numpy((~drop).astype(np.float64))


def plain(query, key, value, samples, plane, scale, dtype=torch.float64):
    """Context [q, b, a*d] in `dtype` from query [q, b, g, n, d], key and value [k, b, g, d], on any device."""
    rows, batch, groups, shared, _ = query.shape
    columns = key.shape[0]
    live = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(plane.row_offset - plane.column_offset)
    out = []
    for b in range(batch):
        for head in range(groups * shared):
            group = head // shared
            scores = scale * query[:, b, group, head % shared].to(dtype) @ key[:, b, group].to(dtype).t()
            probs = torch.softmax(scores.masked_fill(~live, -torch.inf), -1).nan_to_num(0.0)
            if plane.threshold:
                keep = keep_of(plane, samples[b], head, rows, columns).to(probs)
                probs = probs * keep * keep_scale(plane.threshold)
            out.append(probs @ value[:, b, group].to(dtype))
    return torch.stack(out).unflatten(0, (batch, -1)).permute(2, 0, 1, 3).flatten(2)


def split(qkv):
    """Query, key and value in packed qkv [s, b, g, n + 2, d]."""
    return qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]
