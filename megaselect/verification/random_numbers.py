"""Random numbers of a step, held against each other: what a second run draws must be what the first run drew."""

from __future__ import annotations

from sys import _getframe
from typing import Any

import torch
from torch import Tensor, nn

from megaselect.recompute.rerun import MODULE_CALL, RerunMode, operator_name
from megaselect.trees import tensors_in
from megaselect.verification.differences import by_how_much


class RandomWatch(RerunMode):
    """On over forward and backward. faults: a sentence for each result of a second run that forward did not have.

    Every operator that torch tags as drawing from a generator is compared, by value, with what the same operator in the
    same module drew in forward. drawn, redrawn: how many such calls there were.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.drawn = self.redrawn = 0
        self._paths = {id(module): path or type(module).__name__ for path, module in model.named_modules()}
        self._results: dict[tuple[str, str], list[list[Tensor]]] = {}

    def called(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, again: bool) -> None:
        """An operator returned `out`; again: in a second run."""
        if torch.Tag.nondeterministic_seeded not in getattr(op, "tags", ()):
            return
        results = [result.detach().clone() for result in tensors_in(out)]
        key = (self._path(), operator_name(op))
        if not again:
            self.drawn += 1
            self._results.setdefault(key, []).append(results)
            return
        self.redrawn += 1
        fault = _fault(results, self._results.get(key, []))
        if fault:
            self.faults.append(f"{key[0]}: {key[1]} in backward {fault}")

    def _path(self) -> str:
        """Of the innermost module that is running."""
        frame = _getframe(1)
        while frame is not None:
            if frame.f_code is MODULE_CALL and id(frame.f_locals["self"]) in self._paths:
                return self._paths[id(frame.f_locals["self"])]
            frame = frame.f_back
        return "outside the model's modules"


def _fault(results: list[Tensor], candidates: list[list[Tensor]]) -> str:
    """Why results of a second run are none of forward's; empty where they are."""
    alike = [first for first in candidates if [one.shape for one in first] == [one.shape for one in results]]
    if any(all(map(torch.equal, first, results)) for first in alike):
        return ""
    if not alike:
        return "draws what forward did not draw"
    wrong = next((got, want) for got, want in zip(results, alike[0], strict=True) if not torch.equal(got, want))
    return f"draws other numbers than in forward: the result {by_how_much(*wrong)}"
