"""Two optimizer steps of an architecture, plain and under `megaselect.recompute`, and the bytes that they save."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from architectures import batch_of, build, loss_of
from torch import nn

import megaselect
from megaselect.errors import RecomputeError
from megaselect.ledger import Ledger, SavedRow, record
from megaselect.recomputation.any_model import AnyModelPlan

SETTINGS = ("selective", "attention", "full")
STEPS = 2


@dataclass(frozen=True)
class Cell:
    """An architecture under a setting. predicted: bytes, or why they are not. different: names of what has other bits.

    saved: bytes after the first step, as the plan says. totals: as a ledger counts two passes, the second of which
    follows the first: its plan's passes are in `observed`. passes: (recorded, followed, departed) in the two steps.
    states: how many random states are among what is saved, to draw from them again.
    """

    predicted: int | RecomputeError
    saved: int
    totals: list[int]
    different: list[str]
    unproved: dict[str, int]
    passes: tuple[int, int, int]
    observed: tuple[int, int, int]
    states: int


@functools.cache
def cell(name: str, setting: str) -> Cell:
    """Run it."""
    model = build(name)
    plan = megaselect.recompute(model, setting)
    predicted = _predicted(plan, name)
    saved, different = [], []
    for now, plain in zip(_steps(name, model), _plain(name), strict=True):
        saved.append(plan.bytes)
        different += [part for part, tensor in plain.items() if not _same(now.get(part), tensor)]
        different += sorted(now.keys() - plain.keys())
    ledgers, observed = _ledgers(name, setting)
    totals, states = [rows.total for rows in ledgers], sum(_is_random_state(row) for row in ledgers[0].rows)
    return Cell(predicted, saved[0], totals, different, plan.unproved, _passes(plan), observed, states)


@functools.cache
def bytes_without_recompute(name: str) -> int:
    """What a pass of the untouched model saves, as a ledger counts it."""
    return ledger_of(name, build(name)).total


def ledger_of(name: str, model: nn.Module) -> Ledger:
    """What a pass saves. The same random numbers each time."""
    torch.manual_seed(0)
    with record(model) as rows:
        output = model(**batch_of(name))
    loss_of(output).backward()
    return rows


@functools.cache
def _plain(name: str) -> list[dict[str, torch.Tensor]]:
    return list(_steps(name, build(name)))


def _steps(name: str, model: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Of each step: its loss, its gradients, and the parameters after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        torch.manual_seed(step)
        loss = loss_of(model(**batch_of(name)))
        loss.backward()
        optimizer.step()
        of_step = {f"loss of step {step}": loss.detach()}
        for path, parameter in model.named_parameters():
            of_step[f"{path} after step {step}"] = parameter.detach().clone()
            if parameter.grad is not None:
                of_step[f"gradient of {path} in step {step}"] = parameter.grad
        yield of_step
        optimizer.zero_grad()  # sets them to None: those that were given stay what they are


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and torch.equal(one, other)


def _predicted(plan: AnyModelPlan, name: str) -> int | RecomputeError:
    try:
        return plan.predict(**batch_of(name))
    except RecomputeError as error:
        return error


def _ledgers(name: str, setting: str) -> tuple[list[Ledger], tuple[int, int, int]]:
    model = build(name)
    plan = megaselect.recompute(model, setting)
    return [ledger_of(name, model) for _ in range(2)], _passes(plan)


def _is_random_state(row: SavedRow) -> bool:
    state = torch.get_rng_state()
    return (row.dtype, row.shape) == (state.dtype, state.shape)


def _passes(plan: AnyModelPlan) -> tuple[int, int, int]:
    return plan.recorded, plan.followed, plan.departed
