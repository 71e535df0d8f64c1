"""What one rank holds of named tensors that may be cut by rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from megaselect.distributed.layout import Layout


class Piece(NamedTuple):
    """Rows of a tensor, in the memory that the model or the optimizer uses. rows: the first of them, and how many the
    whole tensor has; None where it is the whole.
    """

    tensor: Tensor
    rows: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return (self.rows[1], *self.tensor.shape[1:]) if self.rows else tuple(self.tensor.shape)

    @property
    def start(self) -> int:
        """The first row."""
        return self.rows[0] if self.rows else 0


def pieces_to_write(pieces: Mapping[str, Piece], layout: Layout) -> dict[str, Piece]:
    """Those that this rank writes: of what several ranks hold alike one writes it, and they take turns."""
    chosen = {}
    for number, (name, piece) in enumerate(sorted(pieces.items())):
        holders = layout.replicas if piece.rows else layout.ranks
        place = layout.replica if piece.rows else layout.rank
        if number % holders == place and (piece.tensor.numel() or not piece.rows):
            chosen[name] = piece
    return chosen
