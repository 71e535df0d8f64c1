"""The storages behind tensors: what really occupies memory, whichever views there are of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from megaselect.compatibility import is_made_of_tensors, is_transformed, storage_address


class StorageKeys:
    """Gives each storage a number that no other one gets while this object lives, and keeps none alive."""

    def __init__(self) -> None:
        self._references: dict[int, StorageWeakRef] = {}  # one of them keeps an address from being used again

    def __call__(self, tensor: Tensor) -> int:
        """The number of the storage behind a plain tensor."""
        key = storage_address(tensor)
        if key not in self._references:
            self._references[key] = StorageWeakRef(tensor.untyped_storage())
        return key


def plain_tensors(value: Any) -> Iterator[Tensor]:
    """The tensors with a storage of their own that `value` is made of: itself, or a distributed tensor's local part.

    None for what is no tensor, for sparse tensors and for those of a function transform.
    """
    if not isinstance(value, Tensor) or is_transformed(value):
        return
    if is_made_of_tensors(value):
        for name in value.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(value, name))
    elif value.layout is torch.strided:
        yield value


def place_in_storage(tensor: Tensor) -> tuple[int, int]:
    """(offset, count) in bytes: where the view begins, and how much of the storage it reads.

    What a dimension of stride 0 repeats counts once.
    """
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    elements = math.prod(size if stride or not size else 1 for size, stride in pairs)
    return int(tensor.storage_offset()) * tensor.element_size(), elements * tensor.element_size()
