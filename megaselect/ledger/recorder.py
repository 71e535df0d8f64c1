"""Writes a ledger while a forward pass runs: told of modules by their hooks, of kept tensors by autograd and torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megaselect.compatibility import version_of
from megaselect.ledger import tensor_names
from megaselect.ledger.families import SHARED, documented_name, is_unused_counter
from megaselect.ledger.layer_paths import layer_paths
from megaselect.ledger.remade import Remade
from megaselect.ledger.rows import Holder, Ledger, SavedRow, Status
from megaselect.ledger.storages import StorageKeys, place_in_storage, plain_tensors
from megaselect.trees import tensors_in

_scopes: ContextVar[tuple[str, ...]] = ContextVar("ledger_scopes", default=())


@contextlib.contextmanager
def scope(name: str) -> Iterator[None]:
    """What is saved inside belongs to `name` where no module inside it claims it: a checkpointed region's input."""
    token = _scopes.set((*_scopes.get(), name))
    try:
        yield
    finally:
        _scopes.reset(token)


@dataclass
class _Call:
    """A module that is running: its path, the storages given to it with their keywords, the names of what it kept."""

    module: str = ""
    inputs: dict[int, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


class Kept(NamedTuple):
    """What a saved-tensor hook keeps: the tensor, how often it had been changed in place, and who keeps it."""

    tensor: Tensor
    version: int
    module: str


def unpack(kept: Kept) -> Tensor:
    """The saved-tensor hook of backward. Raises RuntimeError, as torch does, where the tensor was changed since.

    torch looks at the version of what it keeps itself, and not of what hooks keep for it: an observer would hide the
    error, and gradients would silently be wrong (seen with torch 2.11 to 2.15).
    """
    now = version_of(kept.tensor)
    if now != kept.version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"of shape {list(kept.tensor.shape)} and {kept.tensor.dtype}, kept in {kept.module or 'the step'}, is at "
            f"version {now}; expected version {kept.version} instead"
        )
    return kept.tensor


class Recorder:
    """Holds no tensor: a storage is known by its key."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.ledger = Ledger()
        self.rows = self.ledger.by_storage
        self.layers = layer_paths(model)
        self.key_of = StorageKeys()
        self.owned = {self.key_of(part) for part in _parts((*model.parameters(), *model.buffers()))}
        self.calls = [_Call()]
        self.makers: dict[int, str] = {}  # storage -> path of the first module whose output it is
        self.places: dict[int, set[tuple[int, int]]] = {}  # of the views of a storage that are kept
        self.inputs_of_region: list[int] | None = None  # while they are being kept
        self.unclaimed: list[int] = []  # inputs of a region in which no module has run yet

    def enter(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pre-hook."""
        # While a module runs, FSDP has gathered parameters in the place of those that are cut.
        self.owned |= {self.key_of(part) for part in _parts(list(module.parameters()))}
        inputs: dict[int, str] = {}
        for keyword, values in (("", args), *kwargs.items()):
            for part in _parts(values):
                inputs.setdefault(self.key_of(part), keyword)
        self.calls.append(_Call(path, inputs))
        layer = self._layer_of(path)
        for key in self.unclaimed:
            name = tensor_names.input_name(tensor_names.label_of(path, layer), inputs.get(key, ""))
            self._change(key, layer=layer, module=path, name=name)
        self.unclaimed = []

    def leave(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        """The forward hook; what it returned would replace the module's output."""
        path = self.calls.pop().module
        for part in _parts(output):
            self.makers.setdefault(self.key_of(part), path)

    def pack(self, tensor: Tensor) -> Kept:
        """The saved-tensor hook: what torch keeps of `tensor`.

        Without its history, which torch has by itself: a result and its graph would else hold each other for ever.
        """
        module = self._module()
        for part in plain_tensors(tensor):
            is_new = self._add(part)
            if is_new and self.inputs_of_region is not None:
                self.inputs_of_region.append(self.key_of(part))
        return Kept(tensor.detach() if tensor.requires_grad else tensor, version_of(tensor), module)

    def packed(self, tensor: Tensor, kept: Any) -> None:
        """Somebody's own saved-tensor hooks keep `kept` for `tensor`; ours are not asked."""
        if isinstance(kept, Remade):
            own = {self.key_of(part): part for part in plain_tensors(tensor)}  # which knows what made it
            for part in _parts(list(kept.read_tensors())):
                if not self._is_saved(part):
                    self._add(own.get(self.key_of(part), part))
            for state in kept.random_states():
                if not self._is_saved(state):
                    self._add(state, is_state=True)
            if not all(map(self._is_saved, plain_tensors(tensor))):
                self.would_keep(tensor)
            return
        for part in list(_parts(kept)) or plain_tensors(tensor):
            self._add(part, held_by="hook")

    def before_inputs(self, closed_over: list[Tensor]) -> None:
        """The layer of a region around whole layers is that of the first module that runs in it; ours have a scope."""
        if torch.is_grad_enabled():
            for part in _parts(closed_over):
                self._add(part, held_by="closure")
            self.inputs_of_region = None if _scopes.get() or self._layer_of(self._module()) else []

    def enter_region(self) -> None:
        """Its inputs have been kept."""
        self.unclaimed += self.inputs_of_region or []
        self.inputs_of_region = None

    def leave_region(self) -> None:
        """Modules that run from here on are outside."""
        self.unclaimed = []

    def would_keep(self, tensor: Tensor) -> None:
        """A region's saved-tensor hook lets go of `tensor`."""
        for part in plain_tensors(tensor):
            self._add(part, status="recomputed")

    def caches(self, tensor: Tensor, op: str) -> None:
        """A selective-checkpoint context keeps what `op` returned."""
        for part in plain_tensors(tensor):
            self._add(part, held_by="cache", op=op)

    def _add(
        self,
        part: Tensor,
        status: Status = "saved",
        held_by: Holder = "autograd",
        op: str = "",
        is_state: bool = False,
    ) -> bool:
        """Write the row of the storage behind `part`, or add a view to it. Whether there was none.

        op: the operator that returned `part`, where that is known. is_state: it is a random state.
        """
        key, size, module = self.key_of(part), part.untyped_storage().nbytes(), self._module()
        if not size or key in self.owned or is_unused_counter(self.model, module, part):
            return False
        known = self.rows.get(key)
        is_new = known is None or (known.status == "recomputed" and status == "saved")
        if is_new:
            self._forget(key)
            name = self._state_name(module) if is_state else self._name(part, key, module, op)
            layer = "" if name == SHARED else self._layer_of(module)
            self.rows[key] = SavedRow(layer, module, name, tuple(part.shape), part.dtype, size, 0, 0, held_by, status)
        self._add_place(key, part)
        self.calls[-1].names.append(self.rows[key].name)
        return is_new

    def _is_saved(self, part: Tensor) -> bool:
        row = self.rows.get(self.key_of(part))
        return row is not None and row.status == "saved"

    def _forget(self, key: int) -> None:
        """Drop what would have been recomputed: it is saved after all."""
        self.rows.pop(key, None)
        self.places.pop(key, None)

    def _add_place(self, key: int, part: Tensor) -> None:
        """Count a view of the storage, if there is none like it yet."""
        places, place = self.places.setdefault(key, set()), place_in_storage(part)
        if place not in places:
            places.add(place)
            read = sum(count for _, count in places)
            self._change(key, view_bytes=min(read, self.rows[key].bytes), views=len(places))

    def _change(self, key: int, **fields: Any) -> None:
        self.rows[key] = replace(self.rows[key], **fields)

    def _module(self) -> str:
        return self.calls[-1].module or ("", *_scopes.get())[-1]

    def _layer_of(self, module: str) -> str:
        """layers.3 for layers.3.mlp.fc1, a chunk's own name for a chunk, "" for what lies outside the layers."""
        if module in self.layers:
            return self.layers[module]
        parts = module.split(".")  # a scope's name
        return ".".join(parts[:2]) if parts[0] == "layers" else ""

    def _state_name(self, module: str) -> str:
        return tensor_names.state_name(tensor_names.label_of(module, self._layer_of(module)))

    def _name(self, part: Tensor, key: int, module: str, op: str) -> str:
        """What the running call calls `part`, which it keeps."""
        call, layer = self.calls[-1], self._layer_of(module)
        label = tensor_names.label_of(module, layer)
        if op:
            return tensor_names.op_name(label, op)
        is_region = not call.module and bool(_scopes.get())
        documented = documented_name(self.model, module, part, call.names, is_region)
        return documented or self._name_by_maker(part, key, layer, label)

    def _name_by_maker(self, part: Tensor, key: int, layer: str, label: str) -> str:
        """After the module in this layer whose output it is, or the input that it is, or the operator that made it."""
        call, maker = self.calls[-1], self.makers.get(key)
        if maker is not None and self._layer_of(maker) == layer:
            return tensor_names.output_name(tensor_names.label_of(maker, layer))
        if key in call.inputs:
            return tensor_names.input_name(label, call.inputs[key])
        op = tensor_names.maker_op(part)
        if op:
            return tensor_names.op_name(label, op)
        return tensor_names.number_name(label, part, len(call.names))


def _parts(tree: Any) -> Iterator[Tensor]:
    """The plain tensors in nested tuples, lists and dictionaries."""
    for leaf in tensors_in(tree):
        yield from plain_tensors(leaf)
