"""Learning rates as a function of the step, counted from 0."""

from __future__ import annotations

import math

from megaselect.config import TrainingConfig

WSD_DECAY_SHARE = 5  # wsd without decay_steps: the last fifth of the run decays


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up to lr, then the schedule's decay to min_lr.

    cosine and linear decay from the end of the warm-up to the end of the run, or over decay_steps, and stay at min_lr;
    wsd stays at lr and decays linearly at the end; constant stays at lr.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = _decay_progress(settings, step)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if settings.schedule == "cosine" else 1 - progress
    return settings.min_lr + (settings.lr - settings.min_lr) * remaining


def _decay_progress(settings: TrainingConfig, step: int) -> float:
    """How much of the decay lies behind: 0 before it, 1 after it."""
    if settings.schedule == "constant":
        return 0.0
    if settings.schedule == "wsd":
        length = settings.decay_steps or max(settings.max_steps // WSD_DECAY_SHARE, 1)
        start = settings.max_steps - length
    else:
        length = settings.decay_steps or max(settings.max_steps - settings.warmup_steps, 1)
        start = settings.warmup_steps
    return min(max((step - start) / length, 0.0), 1.0)
