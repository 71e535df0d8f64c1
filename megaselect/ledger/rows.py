"""The rows of a ledger: storages that backward needs, saved or recomputed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

Holder = Literal["autograd", "cache", "closure", "hook"]
Status = Literal["saved", "recomputed"]


@dataclass(frozen=True)
class SavedRow:
    """One storage that backward needs, with all its bytes. layer: "layers.3", "layers.0-3" for a chunk, "" outside.

    shape: of the first view that was kept. view_bytes: what the kept views read of the storage, `views` in number;
    fewer than `bytes` where a view pins more than it reads. Views that overlap count each, up to `bytes`.
    held_by: the autograd graph, somebody's own saved-tensor hooks, the cache of a selective-checkpoint context, or a
    checkpointed function that closes over it. status: "recomputed" rows are not in memory after the forward pass:
    backward makes them again.
    """

    layer: str
    module: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    view_bytes: int
    views: int = 1
    held_by: Holder = "autograd"
    status: Status = "saved"

    def as_dict(self) -> dict[str, Any]:
        """As plain data: what JSON can hold."""
        return {**asdict(self), "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}


class Ledger:
    """Rows of a forward pass that ran inside `record`."""

    def __init__(self) -> None:
        self.by_storage: dict[int, SavedRow] = {}  # of both kinds; the keys are the recorder's

    @property
    def rows(self) -> list[SavedRow]:
        """What is saved for backward, parameters and buffers left out."""
        return [row for row in self.by_storage.values() if row.status == "saved"]

    @property
    def recomputed(self) -> list[SavedRow]:
        """What checkpointed regions would have kept. Of that, a region's part exists again while its backward runs."""
        return [row for row in self.by_storage.values() if row.status == "recomputed"]

    @property
    def total(self) -> int:
        """Bytes saved for backward."""
        return sum(row.bytes for row in self.rows)

    @property
    def recomputed_total(self) -> int:
        """Bytes that regions would have kept, all regions together; not part of `total`."""
        return sum(row.bytes for row in self.recomputed)

    def by_layer(self) -> dict[str, int]:
        """Layer or chunk -> bytes kept, in the order of the forward pass; "" is what lies outside the layers."""
        totals: dict[str, int] = {}
        for row in self.rows:
            totals[row.layer] = totals.get(row.layer, 0) + row.bytes
        return totals

    def by_name(self) -> dict[tuple[str, str], int]:
        """(layer, name) -> bytes kept."""
        totals: dict[tuple[str, str], int] = {}
        for row in self.rows:
            totals[row.layer, row.name] = totals.get((row.layer, row.name), 0) + row.bytes
        return totals

    def as_dicts(self) -> list[dict[str, Any]]:
        """All rows as plain data, what is recomputed after what is saved."""
        return [row.as_dict() for row in (*self.rows, *self.recomputed)]
