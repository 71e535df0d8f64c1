"""What is known of the storages that are alive: which value each holds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from megaselect.compatibility import storage_address, version_of
from megaselect.recomputation.tape.values import Node, Value, is_plain


@dataclass(eq=False)
class _Entry:
    alive: StorageWeakRef
    version: int
    value: Value


class Contents:
    """Of one forward pass of `model`. Keeps no storage alive."""

    def __init__(self, model: nn.Module) -> None:
        self._values = 0
        self._entries: dict[int, _Entry] = {}  # by the address of a storage
        self._escaped: set[int] = set()
        self._owned = {storage_address(part) for part in (*model.parameters(), *model.buffers()) if is_plain(part)}

    def new_value(self, nbytes: int, node: Node | None = None, index: int = 0) -> Value:
        """A value with a number of its own: what the result `index` of a node holds, or what nobody is known to have
        made.
        """
        self._values += 1
        return Value(self._values, nbytes, node, index)

    def enter(self, tensor: Tensor, value: Value, version: int | None = None) -> None:
        """From here on the storage behind `tensor` holds `value`, as long as its version is this one (its own)."""
        if storage_address(tensor) in self._escaped:
            value.node = None
        alive = StorageWeakRef(tensor.untyped_storage())
        version = version_of(tensor) if version is None else version
        self._entries[storage_address(tensor)] = _Entry(alive, version, value)

    def value_of(self, tensor: Tensor) -> Value | None:
        """What the storage behind `tensor` holds now; None where it is not known."""
        entry = self._entries.get(storage_address(tensor))
        return entry.value if entry is not None and entry.version == version_of(tensor) else None

    def value_at_any_version(self, tensor: Tensor) -> Value | None:
        """What it held when that was last known: an alias by `.data` counts changes of its own."""
        entry = self._entries.get(storage_address(tensor))
        return entry.value if entry is not None else None

    def escapes(self, tensor: Tensor) -> None:
        """Somebody may write into it unseen: what it holds cannot be made again."""
        self._escaped.add(storage_address(tensor))
        self.forget(tensor)

    def value_or_new(self, tensor: Tensor) -> Value:
        """What the storage behind `tensor` holds now: a new value where it is not known."""
        value = self.value_of(tensor)
        if value is None:
            value = self.new_value(tensor.untyped_storage().nbytes())
            self.enter(tensor, value)
        return value

    def forget(self, tensor: Tensor) -> None:
        """Somebody has written into it."""
        self._entries.pop(storage_address(tensor), None)

    def is_owned(self, tensor: Tensor) -> bool:
        """Whether it is over a parameter or buffer of the model's."""
        return storage_address(tensor) in self._owned

    def sweep(self) -> None:
        """Forget storages that are gone."""
        self._entries = {address: entry for address, entry in self._entries.items() if not entry.alive.expired()}

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
