"""The largest micro-batch that trains, found by trying: doubled until memory is short, then narrowed down."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.device import free_memory, is_out_of_memory, synchronise
from benchmarks.families import Family, random_batch
from benchmarks.settings import BenchConfig

MOST_TRIES = 14
RESOLUTION = 16  # narrowed down to 1/16 of the size


def largest_micro_batch(
    family: Family, prepare: Callable[[], None], config: BenchConfig, device: torch.device
) -> int | None:
    """None on a CPU, whose memory ends in swapping, and where no size trains."""
    if device.type != "cuda":
        return None
    prepare()
    fits, fails = 0, None
    size = config.training.micro_batch_size
    for _ in range(MOST_TRIES):
        if _trains(family, config.sized(micro_batch=size), device):
            fits = size
        else:
            fails = size
        if fails is not None and fails - fits <= max(fits // RESOLUTION, 1):
            break
        size = 2 * fits if fails is None else (fits + fails) // 2
        if size == 0:
            break
    return fits or None


def _trains(family: Family, config: BenchConfig, device: torch.device) -> bool:
    """Whether one step of this micro-batch size fits into memory. Other errors are raised."""
    fits = True
    try:
        family.optimizer.backward(family.loss(random_batch(config, 0, device)))
        family.optimizer.step(family.learning_rate)
        synchronise(device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    family.drop_gradients()
    free_memory()
    return fits
