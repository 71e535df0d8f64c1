"""Proof that what observes a step sees it right on the torch that runs: small regions whose bytes are known.

A private name that is gone is noticed where it is looked up; one that is still there and means something else is not.
So before the first use, a region runs in each form of torch's checkpoint, and what the observers saw is compared with
what it must be: bytes kept and let go, operators that ran again, and a tensor changed in place.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from megaselect.compatibility import Hooks, argument_names, graph_of, storage_address, unsupported, version_of
from megaselect.errors import UnsupportedTorchError
from megaselect.ledger.rerun import RerunMode
from megaselect.ledger.torch_checkpoint import watched

BYTES = 32  # of each tensor: 8 fp32 values


def check_observation() -> None:
    """Once a process. Raises UnsupportedTorchError with what was seen and what it should have been."""
    fault = _fault()
    if fault:
        raise unsupported(fault)


@functools.cache
def _fault() -> str:
    """In a thread of its own: modes, hooks and autocast of the caller belong to the caller's thread."""
    faults: list[str] = []

    def run() -> None:
        try:
            faults.extend(_differences())
        except UnsupportedTorchError as error:
            faults.append(str(error))
        except Exception as error:  # whatever a torch that is not known does
            faults.append(f"fails where regions are watched ({type(error).__name__}: {error})")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return faults[0] if faults else ""


def _differences() -> list[str]:
    """A sentence for each form of checkpoint that is not seen as it is."""
    kept = {"inputs": BYTES, "outside": 0, "let go": 2 * BYTES, "cached": 0, "regions": 1}
    expected: dict[str, dict[str, Any]] = {
        "non-reentrant": {**kept, "again": {"aten.mul": 1, "aten.sin": 1, "aten.exp": 1}},
        "selective": {**kept, "cached": BYTES, "again": {"aten.mul": 1, "aten.exp": 1}},
        "reentrant": {**kept, "let go": 0, "regions": 0, "again": {"aten.mul": 1, "aten.sin": 1, "aten.exp": 1}},
    }
    seen = {name: _Region(name).seen() for name in expected}
    faults = [
        f"shows a {name} region as {seen[name]}, not {want}" for name, want in expected.items() if seen[name] != want
    ]
    return [*faults, *_wrong_answers()]


def _wrong_answers() -> Iterator[str]:
    """A sentence for each question about one tensor or operator that is not answered as it must be."""
    tensor = torch.ones(2)
    alias, before = tensor.detach(), version_of(tensor)
    tensor.add_(1)
    if version_of(alias) != before + 1:
        yield "does not count changes in place"
    if storage_address(tensor) != storage_address(alias[:1]) or storage_address(tensor) == storage_address(tensor + 1):
        yield "does not tell storages apart"
    node = graph_of(torch.ones(2, requires_grad=True).exp()[:1])
    if node is None or "Exp" not in node.name():
        yield "does not say what made a tensor"
    if argument_names(torch.ops.aten.mul.Tensor) != ["self", "other"]:
        yield "does not name an operator's arguments"


class _Region:
    """exp(sin(2 x)): sin keeps its input, exp its result."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.counts = Counter(dict.fromkeys(("inputs", "outside", "let go", "cached", "regions"), 0))
        self.inside = False

    def seen(self) -> dict[str, Any]:
        x = torch.ones(8, requires_grad=True)
        with watched(self), Hooks(self._pack, lambda kept: kept):
            out = self._run(x)
        with RerunMode() as mode:
            out.backward(torch.ones_like(out))
        return {**self.counts, "again": dict(mode.rerun.calls)}

    def _run(self, x: Tensor) -> Tensor:
        settings: dict[str, Any] = {"use_reentrant": self.form == "reentrant", "preserve_rng_state": False}
        if self.form == "selective":
            settings["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_sin)
        return checkpoint(lambda tensor: (tensor * 2).sin().exp(), x, **settings)

    def _pack(self, tensor: Tensor) -> Tensor:
        self.counts["outside" if self.inside else "inputs"] += tensor.untyped_storage().nbytes()
        return tensor.detach()

    def before_inputs(self, _: list[Tensor]) -> None:
        self.counts["regions"] += 1

    def enter_region(self) -> None:
        self.inside = True

    def leave_region(self) -> None:
        self.inside = False

    def would_keep(self, tensor: Tensor) -> None:
        self.counts["let go"] += tensor.untyped_storage().nbytes()

    def caches(self, tensor: Tensor, _: str) -> None:
        self.counts["cached"] += tensor.untyped_storage().nbytes()


def _keep_sin(_: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.sin.default else CheckpointPolicy.PREFER_RECOMPUTE
