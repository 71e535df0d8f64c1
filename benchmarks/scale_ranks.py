"""What each rank of the part `scale` does: takes steps in turns with the others, or counts the bytes that it sends."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.scale_trainers import UNSEEN_BY_HOOKS, Megaselect, PlainFSDP, Trainer
from benchmarks.settings import RECOMPUTE
from benchmarks.traffic import counted
from megaselect.config import Config
from megaselect.devices import resolve_device, synchronise
from megaselect.distributed.launch import joined_ranks
from megaselect.distributed.ranks import Ranks
from megaselect.training.phases import PHASES

# Label -> (recompute, section parallel, who takes the step: ranks together, each alone at the same time, or the first).
OURS: dict[str, tuple[str, dict[str, str], str]] = {
    "none": ("none", {}, "together"),
    "none, native": ("none", {"reduction": "native"}, "together"),
    "none, gradients": ("none", {"sharding": "gradients"}, "together"),
    "none, replicated": ("none", {"sharding": "none"}, "together"),
    "none, each alone": ("none", {}, "each"),
    "none, one rank": ("none", {}, "first"),
    "all": ("all", {}, "together"),
}
FEWEST_ROUNDS = 3
GIVE_UP_SECONDS = 120.0  # on a rank that does not come
Sections = Mapping[str, Any]


def measure(config: Sections, baselines: Sequence[str], sdpa: bool, rounds: int, seconds: float) -> dict[str, Any]:
    """By label: each round's milliseconds of the slowest rank, and of processor time of all threads of the busiest one;
    medians of this rank's phases; saved bytes.

    config: of a run on these ranks, without recompute and parallel. About `seconds` in all, once they are made.
    """
    _use_one_thread(config)
    with joined_ranks(GIVE_UP_SECONDS) as ranks:
        trainers: dict[str, Trainer | None] = {}
        for label, (recompute, parallel, taken) in OURS.items():
            chosen = dict(config) | {"recompute": RECOMPUTE[recompute], "parallel": parallel}
            trainers[label] = _trainer(chosen, ranks, taken)
        plain = Config.from_dict(dict(config))
        trainers |= {way: PlainFSDP(plain, ranks, way, sdpa) for way in baselines}
        alone = [label for label, (_, _, taken) in OURS.items() if taken != "together"]
        saved = {
            label: trainer.saved_bytes()
            for label, trainer in trainers.items()
            if label not in UNSEEN_BY_HOOKS and trainer is not None and label not in alone
        }
        times = _take_turns(trainers, ranks, rounds, seconds, resolve_device(plain.training.device))
        return times | {"saved": saved}


def _use_one_thread(config: Sections) -> None:
    """On a CPU, where ranks share the cores."""
    if config["training"]["device"] == "cpu":
        torch.set_num_threads(1)


def _trainer(config: dict[str, Any], ranks: Ranks, taken: str) -> Megaselect | None:
    """Alone it takes as many micro-batches as each rank takes together. None on a rank that does nothing then."""
    if taken == "together":
        return Megaselect(Config.from_dict(config), ranks)
    if taken == "first" and not ranks.is_first:
        return None
    share = config["training"]["global_batch_size"] // ranks.size
    return Megaselect(
        Config.from_dict(config | {"training": config["training"] | {"global_batch_size": share}}), Ranks()
    )


def _take_turns(
    trainers: Mapping[str, Trainer | None], ranks: Ranks, rounds: int, seconds: float, device: torch.device
) -> dict[str, dict[str, Any]]:
    """A step each a round, each round in another order, as a step also depends on the memory that the one before it has
    left. The round before the first one warms up.
    """
    labels = list(trainers)
    taken: dict[str, list[_Step]] = {label: [] for label in labels}
    started = 0.0
    for number in range(-1, rounds):
        if number == 0:
            started = time.monotonic()
        elif number >= FEWEST_ROUNDS and ranks.from_first(time.monotonic() - started > seconds):
            break
        for label in random.Random(number).sample(labels, len(labels)):  # alike on all ranks
            step = _timed_step(trainers[label], ranks, device)
            if number >= 0:
                taken[label].append(step)
    return {
        "milliseconds": {label: [step.milliseconds for step in steps] for label, steps in taken.items()},
        "processor": {label: [step.processor for step in steps] for label, steps in taken.items()},
        "phases": {
            label: {name: median(step.phases[name] for step in steps) for name in PHASES}
            for label, steps in taken.items()
            if trainers[label] is not None
        },
    }


class _Step(NamedTuple):
    """In milliseconds; phases: of this rank."""

    milliseconds: float
    processor: float
    phases: dict[str, float]


def _timed_step(trainer: Trainer | None, ranks: Ranks, device: torch.device) -> _Step:
    """Ranks begin together. None: only waits for the others."""
    synchronise(device)
    ranks.from_first(None)
    started, used, phases = time.perf_counter(), time.process_time(), {}
    if trainer is not None:
        trainer.step()
        synchronise(device)
    own = (1e3 * (time.perf_counter() - started), 1e3 * (time.process_time() - used))
    if trainer is not None:
        phases = trainer.phases.milliseconds()
    spent, processor = (max(each) for each in zip(*ranks.gather_values(own), strict=True))
    return _Step(spent, processor, phases)


def count(config: Sections, parallel: Mapping[str, Sections]) -> dict[str, dict[str, int]]:
    """Label -> function of torch.distributed -> bytes that this rank sends by it in a step, under parallel settings."""
    _use_one_thread(config)
    with joined_ranks(GIVE_UP_SECONDS) as ranks:
        found = {}
        for label, section in parallel.items():
            trainer = Megaselect(Config.from_dict(dict(config) | {"parallel": section}), ranks)
            trainer.step()  # the first one sets up what later ones use
            with counted() as sent:
                trainer.step()
            found[label] = dict(sent)
        return found
