"""A step that does not fit: what would, and the next stronger recompute mode."""

from __future__ import annotations

from collections.abc import Callable

from megaselect.config import Config
from megaselect.errors import DeviceError
from megaselect.model.gpt import GPT
from megaselect.training.optimizer import MixedPrecisionAdamW


def step_up(
    config: Config,
    model: GPT,
    optimizer: MixedPrecisionAdamW,
    step: int,
    problem: str,
    note: Callable[[str], None],
) -> Config:
    """Ready the model for the step after `step` to be taken again with the next stronger mode; the config with it.

    problem: what the allocator said. Raises DeviceError, which says what would fit, where on_oom is stop or no mode is
    stronger.
    """
    raise DeviceError(f"step {step + 1} ran out of memory: {problem}")
