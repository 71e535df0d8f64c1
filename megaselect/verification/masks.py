"""Every mask that a step uses, in forward, in a second run and in backward, held against the mask function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megaselect.compatibility import argument_names
from megaselect.kernels.dropout_mask import SITES_PER_LAYER
from megaselect.ledger.rerun import operator_name
from megaselect.verification import mask_probes
from megaselect.verification.dropout_sites import MaskFunction, Site
from megaselect.verification.expected import OURS
from megaselect.verification.mask_probes import Probe

PROBES: dict[str, tuple[Probe, str]] = {
    OURS + "bias_dropout_residual": (mask_probes.hidden_forward, "forward"),
    OURS + "bias_dropout_residual_backward": (mask_probes.hidden_backward, "backward"),
    OURS + "bias_dropout_residual_layer_norm": (mask_probes.hidden_forward, "forward"),
    OURS + "bias_dropout_residual_layer_norm_backward": (mask_probes.hidden_backward, "backward"),
    OURS + "softmax_dropout_value": (mask_probes.unfused_forward, "forward"),
    OURS + "softmax_dropout_value_backward": (mask_probes.unfused_backward, "backward"),
    OURS + "fused_attention": (mask_probes.fused_forward, "forward"),
    OURS + "fused_attention_backward": (mask_probes.fused_backward, "backward"),
}
DIRECTIONS = ("forward", "backward")


class MaskCheck:
    """Looks at the dropout operators of one step of one batch. turn: which sample of the batch attention is looked at.

    faults: a sentence for each mask that is not the function's.
    """

    def __init__(self, sites: dict[int, Site], function: MaskFunction, turn: int) -> None:
        self.sites, self.function, self.turn = sites, function, turn
        self.faults: list[str] = []
        self._seen: set[tuple[int, str]] = set()

    def called(self, op: Any, arguments: dict[str, Any], again: bool) -> None:
        """An operator was called with these arguments, named as in its schema; again: in a second run."""
        probe, direction = PROBES.get(operator_name(op), (None, ""))
        if probe is None or not arguments["threshold"]:
            return
        where = "a second run" if again else direction
        site = self.sites.get(arguments["site"])
        if site is None:
            self.faults.append(f"site {arguments['site']}: {where} drops out there, which is no site of the model")
            return
        self._seen.add((site.number, direction))
        sample = self._sample(site)
        with torch.no_grad():
            kept = probe(_by_name(op), arguments, site, sample).cpu()
        expected = self.function.attention(site, sample) if site.heads else self.function.hidden(site, kept.shape[-1])
        self.faults += _faults(site, where, kept, expected.expand_as(kept), self.function.samples[sample])

    def missing(self) -> Iterator[str]:
        """A sentence for each site whose mask was not met, in a step that is over."""
        for site in self.sites.values():
            for direction in DIRECTIONS:
                if (site.number, direction) not in self._seen:
                    yield f"{site.path}: no mask was seen in {direction}"

    def _sample(self, site: Site) -> int:
        """Another one in each layer and at each turn, so that the settings together see all."""
        return (site.number // SITES_PER_LAYER + self.turn) % len(self.function.samples)


def _by_name(op: Any) -> Any:
    """The operator, called with arguments by name."""
    names = argument_names(op)
    return lambda **arguments: op(*(arguments[name] for name in names))


def _faults(site: Site, where: str, kept: Tensor, expected: Tensor, sample: Tensor) -> Iterator[str]:
    wrong = kept != expected
    if not wrong.any():
        return
    place = [int(index) for index in wrong.nonzero()[0]]
    if site.heads:
        at = f"sample {int(sample)}, head {place[-3]}, row {place[-2] + site.first}, column {place[-1] + site.first}"
    else:
        at = f"position {place[0] + site.first}, place {place[1]} in the batch, channel {place[2]}"
    yield (
        f"{site.path}: the mask that {where} used differs from the function in {int(wrong.sum()):,} of "
        f"{wrong.numel():,} elements, first at {at}"
    )
