"""Where a run stands: what a checkpoint holds beside tensors, and what a step changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunState:
    """Optimizer steps done, and the sample index that comes next; the rest is kept over a resumption.

    skipped_steps: steps that left the weights as they were (fp16 overflows, and values that were not finite).
    best_valid_loss, best_step: the lowest validation loss so far and its step. identity: names under which sinks know
    the run, such as its id in Weights & Biases.
    """

    step: int
    next_sample: int
    skipped_steps: int = 0
    best_valid_loss: float | None = None
    best_step: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
