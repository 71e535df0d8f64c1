"""How a module is called with a batch, and what its loss is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from megaselect.errors import VerificationError

LossFunction = Callable[[Any], Tensor]


def arguments_of(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A mapping's items by keyword, the parts of a tuple or list in their order, else the batch alone."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch), {}) if isinstance(batch, tuple | list) else ((batch,), {})


def called_with(model: nn.Module, batch: Any) -> Any:
    """model(batch) for a tensor, model(*batch) for a tuple or list, model(**batch) for a mapping."""
    args, kwargs = arguments_of(batch)
    return model(*args, **kwargs)


def loss_of(output: Any, loss_fn: LossFunction | None) -> Tensor:
    """A scalar: by loss_fn, or the output itself, its `.loss`, or its "loss". Raises VerificationError."""
    loss = loss_fn(output) if loss_fn else output
    if isinstance(loss, Mapping) and "loss" in loss:
        loss = loss["loss"]
    if not isinstance(loss, Tensor):
        loss = getattr(loss, "loss", loss)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    found = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
    source = "loss_fn returns" if loss_fn else "the model returns"
    raise VerificationError(f"{source} {found} and no scalar loss: give loss_fn, such as lambda output: output.sum()")
