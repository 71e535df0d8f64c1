"""The architectures in other precisions, and with a part of their parameters frozen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from corpus.architectures import Architecture, all_architectures
from corpus.fault import Case
from corpus.hugging_face import REAL_FAULTS, WAYS

FORMS = ("non-reentrant", "reentrant")  # of torch's checkpoint, under which each variant is run
Variant = Callable[[Case], Case]


def in_bf16(case: Case) -> Case:
    """Parameters and inputs in bf16."""

    def narrow(value: Any) -> Any:
        return value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value

    return Case(case.model.bfloat16(), {name: narrow(value) for name, value in case.batch.items()})


def in_autocast(case: Case) -> Case:
    """The forward pass in bf16 where torch's autocast takes it, parameters in fp32; backward outside."""
    case.model.forward = functools.partial(_with_autocast, case.model.forward)
    return case


def _with_autocast(forward: Callable[..., Any], **batch: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return forward(**batch)


def partly_frozen(case: Case) -> Case:
    """Two of three parameters ask for no gradient, those of the embedding among them."""
    for number, parameter in enumerate(case.model.parameters()):
        parameter.requires_grad_(number % 3 == 2)
    return case


VARIANTS: dict[str, Variant] = {"bf16": in_bf16, "autocast": in_autocast, "partly frozen": partly_frozen}


def case_of(architecture: Architecture, way: str, variant: str) -> Case:
    """A new one."""
    return VARIANTS[variant](architecture.case(WAYS[way]))


def cells() -> Iterator[tuple[Architecture, str, str]]:
    """Architecture, way, variant; without those in which transformers itself is at fault."""
    for architecture in all_architectures():
        for way in FORMS:
            if (architecture.name, way) not in REAL_FAULTS:
                yield from ((architecture, way, variant) for variant in VARIANTS)
