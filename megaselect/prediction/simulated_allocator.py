"""A simulated allocator: named tensors come and go, and the most that was held is remembered. No torch."""

from __future__ import annotations

from collections.abc import Mapping


class SimulatedAllocator:
    """Bytes held now and at most. A tensor of zero bytes may be freed without having been made."""

    def __init__(self, held: int = 0) -> None:
        self.held = self.peak = held
        self._live: dict[str, int] = {}

    def make(self, tensors: Mapping[str, int]) -> None:
        """Allocate; a name that is live already is an error in the simulation."""
        for name, size in tensors.items():
            assert name not in self._live, name
            if size:
                self._live[name] = size
                self.held += size
        self.peak = max(self.peak, self.held)

    def free(self, *names: str) -> None:
        """Give back those of the names that are live."""
        for name in names:
            self.held -= self._live.pop(name, 0)

    def brief(self, size: int) -> None:
        """Allocate and give back at once."""
        self.peak = max(self.peak, self.held + size)

    def hold(self, size: int) -> None:
        """Allocate for good, without a name: gradients of parameters."""
        self.held += size
        self.peak = max(self.peak, self.held)

    def release(self, size: int) -> None:
        """Give back some of what is held."""
        self.held -= size
