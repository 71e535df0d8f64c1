"""Dataclasses of three makes, as models and batches hold them."""

import dataclasses

import torch


@dataclasses.dataclass
class Counter:
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Frozen:
    mean: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    step: int = 0
