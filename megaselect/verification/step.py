"""One forward and backward pass of our model under a plan, watched from all sides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megaselect import ledger
from megaselect.compatibility import argument_names
from megaselect.ledger.rerun import Rerun, RerunMode
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.model import GPT
from megaselect.recomputation.plan import RecomputePlan
from megaselect.verification.expected import made_inside
from megaselect.verification.masks import MaskCheck

if TYPE_CHECKING:
    from megaselect.data.sampler import Batch


@dataclass(frozen=True)
class Step:
    """values: the loss, then each parameter's gradient, None where there is none. saved: (layer, name) -> bytes.

    inside: what our backward operators had to make themselves (expected.py has the names).
    """

    values: dict[str, Tensor | None]
    saved: dict[tuple[str, str], int]
    saved_total: int
    rerun: Rerun
    inside: Counter[str]

    @property
    def gradients(self) -> dict[str, Tensor | None]:
        """By the parameters' names."""
        return {name: value for name, value in self.values.items() if name != "loss"}


def run_step(model: GPT, batch: Batch, plan: RecomputePlan, masks: MaskCheck | None = None) -> Step:
    """The model keeps the plan, and no gradients."""
    apply_recompute(model, plan)
    model.zero_grad(set_to_none=True)
    with _Watch(masks) as watch:
        with ledger.record(model) as saved:
            loss = model(batch.tokens, batch.targets, batch.sample_index)
        loss.backward()
    values: dict[str, Tensor | None] = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        values[name], parameter.grad = parameter.grad, None
    return Step(values, saved.by_name(), saved.total, watch.rerun, watch.inside)


class _Watch(RerunMode):
    def __init__(self, masks: MaskCheck | None) -> None:
        super().__init__()
        self.masks = masks
        self.inside: Counter[str] = Counter()

    def called(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, again: bool) -> None:
        """An operator's call is over; what is called from here on is not seen."""
        if op.namespace != "megaselect":
            return
        names = argument_names(op)
        arguments = dict(zip(names, args, strict=True))
        self.inside.update(made_inside(op, arguments))
        if self.masks is not None:
            self.masks.called(op, arguments, again)
