"""What a forward pass really kept for backward: every tensor, each storage once, parameters apart.

Counts by torch.autograd.graph.saved_tensors_hooks. A saved view pins its whole storage, so that is what is counted.
Works on any nn.Module; for our own model rows carry the names that megaselect.recompute.theory predicts.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megaselect.model.block import Block
from megaselect.recompute.compiled import is_compiled
from megaselect.recompute.tensor_names import SHARED, is_unused_counter, name_of

_scopes: ContextVar[tuple[str, ...]] = ContextVar("ledger_scopes", default=())


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """What is saved inside belongs to `name` where no module inside it claims it: a checkpointed region's input."""
    token = _scopes.set((*_scopes.get(), name))
    try:
        yield
    finally:
        _scopes.reset(token)


@dataclass(frozen=True)
class StoredRow:
    """One storage kept for backward, with all its bytes. layer: "layers.3", "layers.0-3" for a chunk, "" outside."""

    layer: str
    module: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int


class Ledger:
    """Rows of a forward pass that ran inside `record`."""

    def __init__(self) -> None:
        self.rows: list[StoredRow] = []

    @property
    def total(self) -> int:
        """Bytes kept for backward, parameters and buffers left out."""
        return sum(row.bytes for row in self.rows)

    def by_layer(self) -> dict[str, int]:
        """Layer or chunk -> bytes, in the order of the forward pass; "" is what lies outside the layers."""
        totals: dict[str, int] = {}
        for row in self.rows:
            totals[row.layer] = totals.get(row.layer, 0) + row.bytes
        return totals

    def by_name(self) -> dict[tuple[str, str], int]:
        """(layer, name) -> bytes."""
        totals: dict[tuple[str, str], int] = {}
        for row in self.rows:
            totals[row.layer, row.name] = totals.get((row.layer, row.name), 0) + row.bytes
        return totals


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Ledger]:
    """Record what forward passes inside keep for backward. Run backward outside, or rows of recomputation join in."""
    recorder = _Recorder(model)
    handles = []
    unhooked = tuple(_changed_by_hooks(model))
    for name, module in model.named_modules():
        if name and not name.startswith(unhooked):
            handles.append(module.register_forward_pre_hook(functools.partial(recorder.enter, name)))
            handles.append(module.register_forward_hook(recorder.leave, always_call=True))
    try:
        with torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda tensor: tensor):
            yield recorder.ledger
    finally:
        for handle in handles:
            handle.remove()


def _changed_by_hooks(model: nn.Module) -> Iterator[str]:
    """Beginnings of the paths of modules that would run otherwise with a hook on them than they do without."""
    for name, module in model.named_modules():
        if is_compiled(module):
            yield f"{name}."  # it would be compiled anew
        elif isinstance(module, Block) and module.fuses_layernorm():
            yield from (f"{name}.attention_dropout", f"{name}.ln2")


class _Recorder:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ledger = Ledger()
        self.path: list[str] = []
        held = (*model.parameters(), *model.buffers())
        self.seen = {_storage_key(tensor) for tensor in held}
        self.kept_alive: list[torch.UntypedStorage] = []  # so that no key is used twice while this records

    def enter(self, name: str, *_: object) -> None:
        """The forward pre-hook."""
        self.path.append(name)

    def leave(self, *_: object) -> None:
        """The forward hook; what it returned would replace the module's output."""
        self.path.pop()

    def pack(self, tensor: Tensor) -> Tensor:
        """The hook: torch is about to keep `tensor`."""
        key, size = _storage_key(tensor), tensor.untyped_storage().nbytes()
        is_region = not self.path and bool(_scopes.get())
        module = (self.path or _scopes.get() or ("",))[-1]
        if size and key not in self.seen and not is_unused_counter(self.model, module, tensor):
            self.seen.add(key)
            self.kept_alive.append(tensor.untyped_storage())
            taken = [row.name for row in self.ledger.rows if row.module == module]
            name = name_of(self.model, module, tensor, size, taken, is_region)
            layer = "" if name == SHARED else _layer_of(module)
            self.ledger.rows.append(StoredRow(layer, module, name, tuple(tensor.shape), tensor.dtype, size))
        return tensor


def _storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _layer_of(path: str) -> str:
    """layers.3 for layers.3.mlp.fc1, a chunk's own name for a chunk, "" for what lies outside the layers."""
    parts = path.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else ""
