"""Tensors of every layout compared by their bits, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by their bytes
_INDICES = {
    torch.sparse_csr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_bsr: (Tensor.crow_indices, Tensor.col_indices),
    torch.sparse_csc: (Tensor.ccol_indices, Tensor.row_indices),
    torch.sparse_bsc: (Tensor.ccol_indices, Tensor.row_indices),
}


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether they are of one kind and hold the same bits: a NaN is itself, and zero is not minus zero."""
    if any(getattr(one, name) != getattr(other, name) for name in ("dtype", "layout", "device", "is_nested")):
        return False
    if not _of_one_shape(one, other):
        return False
    if one.is_meta:
        return True
    parts, others = list(_parts(one.detach())), list(_parts(other.detach()))
    return len(parts) == len(others) and all(map(torch.equal, parts, others))


def _of_one_shape(one: Tensor, other: Tensor) -> bool:
    """A nested tensor may refuse to say its shape; its parts have one each."""
    return one.is_nested or one.shape == other.shape


def put_into(tensor: Tensor, kept: Tensor) -> None:
    """What it held before, into the same tensor, which others may hold. One that has not changed is left alone."""
    if same_bits(tensor, kept):
        return
    with torch.no_grad():
        if tensor.layout is torch.sparse_coo:
            tensor.sparse_resize_and_clear_(kept.shape, kept.sparse_dim(), kept.dense_dim()).copy_(kept)
        elif tensor.layout in _INDICES:
            tensor.resize_as_sparse_(kept).copy_(kept)
        elif not _of_one_shape(tensor, kept):
            tensor.data = kept.to(tensor.dtype).clone()
        else:
            _copy(tensor.data, kept)


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """Dense tensors of integers with all of its bits."""
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        yield tensor.indices()
        yield from _parts(tensor.values())
    elif tensor.layout in _INDICES:
        yield from (indices(tensor) for indices in _INDICES[tensor.layout])
        yield from _parts(tensor.values())
    elif hasattr(tensor, "__tensor_flatten__"):  # a subclass that is made of other tensors
        for name in tensor.__tensor_flatten__()[0]:
            yield from _parts(getattr(tensor, name))
    elif tensor.is_nested:
        for part in tensor.unbind():
            yield from _parts(part)
    elif tensor.is_quantized:
        yield tensor.int_repr()
    elif tensor.layout is not torch.strided:
        yield from _parts(tensor.to_dense())
    else:
        plain = tensor.resolve_conj().resolve_neg()
        plain = torch.view_as_real(plain) if plain.is_complex() else plain
        yield plain.view(_INTEGERS[plain.element_size()])


def _copy(target: Tensor, source: Tensor) -> None:
    """Where a dimension of the target is expanded, all of its elements are one, and are written once."""
    if not target.is_nested:
        for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
            if stride == 0 and size > 1:
                target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.copy_(source)
