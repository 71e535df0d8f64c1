"""What a forward pass really saved for backward: every tensor, each storage once, parameters apart.

Counts by torch.autograd.graph.saved_tensors_hooks, and by what torch.utils.checkpoint hides from these: the caches of
its selective contexts, and what a checkpointed function closes over. A saved view pins its whole storage, so that is
what is counted. Works on any nn.Module, on any device and with fake tensors, which have bytes without memory; for our
own model rows carry the names that megaselect.prediction.saved_bytes predicts.

Of what other people's saved-tensor hooks keep (save_on_cpu), the tensors that they return are counted, on whichever
device they are; of hooks that return none, what was handed to them.

What a non-reentrant checkpoint (ours is one) will make again in backward is listed apart. Not listed: what an operator
makes again inside itself and so never gave to autograd, softmax and masks under `selective` and tiles of fused
attention, and what is inside a reentrant checkpoint, whose first run is without autograd.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from torch import nn

from megaselect.compatibility import Hooks, is_compiled_module, other_hooks_watched
from megaselect.ledger.families import FAMILIES
from megaselect.ledger.recorder import Recorder, scope, unpack
from megaselect.ledger.rows import Ledger, SavedRow
from megaselect.ledger.self_check import check_observation
from megaselect.ledger.torch_checkpoint import watched

__all__ = ["Ledger", "SavedRow", "record", "scope"]


@contextlib.contextmanager
def record(model: nn.Module) -> Iterator[Ledger]:
    """Record what forward passes inside save for backward. Run backward outside, or rows of recomputation join in.

    Raises UnsupportedTorchError where this torch cannot be observed, and RuntimeError in backward where autograd's own
    check of tensors that were changed in place would.
    """
    check_observation()
    recorder = Recorder(model)
    handles = []
    unhooked = tuple(_changed_by_hooks(model))
    for name, module in model.named_modules():
        if not f"{name}.".startswith(unhooked):
            enter = functools.partial(recorder.enter, name)
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.leave, always_call=True))
    try:
        with watched(recorder), other_hooks_watched(recorder.packed), Hooks(recorder.pack, unpack):
            yield recorder.ledger
    finally:
        for handle in handles:
            handle.remove()


def _changed_by_hooks(model: nn.Module) -> Iterator[str]:
    """Beginnings of the paths of modules that would run otherwise with a hook on them than they do without."""
    for name, module in model.named_modules():
        if is_compiled_module(module):
            yield f"{name}." if name else ""
        for family in FAMILIES:
            yield from (f"{name}.{child}." for child in family.changed_by_hooks(module))
