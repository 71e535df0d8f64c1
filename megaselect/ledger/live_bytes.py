"""The most bytes that a step's tensors take at a time, on any device and without values too."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from megaselect.compatibility import TorchDispatchMode, storage_address
from megaselect.ledger.storages import plain_tensors
from megaselect.trees import tensors_in


class LiveBytes(TorchDispatchMode):
    """Inside, `peak` is the highest sum of the storages that operators have made and that are still there.

    What an operator takes while it runs and lets go of before it ends is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._known: dict[int, tuple[StorageWeakRef, int]] = {}  # address of a storage -> is it there, and its bytes
        self._sum = 0  # of all that are known, those with it that may be gone by now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        came_in = {storage_address(part) for given in tensors_in([args, kwargs]) for part in plain_tensors(given)}
        result = func(*args, **(kwargs or {}))
        for made in tensors_in(result):
            for part in plain_tensors(made):
                if storage_address(part) not in came_in:
                    self._add(part)
        if self._sum > self.peak:
            self._sweep()
            self.peak = max(self.peak, self._sum)
        return result

    def _add(self, part: Tensor) -> None:
        address, nbytes = storage_address(part), part.untyped_storage().nbytes()
        before = self._known.get(address)
        if before is not None:
            self._sum -= before[1]
        self._known[address] = (StorageWeakRef(part.untyped_storage()), nbytes)
        self._sum += nbytes

    def _sweep(self) -> None:
        self._known = {address: known for address, known in self._known.items() if not known[0].expired()}
        self._sum = sum(nbytes for _, nbytes in self._known.values())
