"""The largest micro-batch that trains, found by trying: doubled until memory is short, then narrowed down."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch

from benchmarks.configs import NamedConfig, sized
from benchmarks.device import free_memory, works
from benchmarks.families import Family, random_batch
from benchmarks.runner import Bench, Case, Row
from benchmarks.settings import BenchmarkSetting
from benchmarks.step_cases import guarded, make_contenders
from benchmarks.timing import failure
from megaselect.comparison.search import MicroBatchSearch
from megaselect.config import Config
from megaselect.devices import is_out_of_memory, synchronise


def largest_case(
    key: str, named: NamedConfig, settings: Sequence[BenchmarkSetting], dtype: torch.dtype, seconds: float
) -> Case:  # fmt: skip
    """A row for each setting, with its largest micro-batch at the config's sequence length. For a GPU."""
    run = functools.partial(_run, named, settings, dtype)
    return Case(key, run, seconds, repr((named, list(settings), dtype)))


def _run(named: NamedConfig, settings: Sequence[BenchmarkSetting], dtype: torch.dtype, bench: Bench) -> list[Row]:
    config, first = named.config, named.config.training.micro_batch_size
    contenders, rows = make_contenders(named, settings, dtype, (), bench)

    def find(contender) -> None:
        contender.prepare()
        size, reason = largest_micro_batch(functools.partial(trains, contender.family, config, bench.device), first)
        contender.row |= {"largest_micro_batch": size, "beyond": reason}

    for contender in contenders:
        guarded(bench, contender, functools.partial(find, contender))
    return [contender.row for contender in contenders] + rows


def largest_micro_batch(try_size: Callable[[int], str], first: int) -> tuple[int, str]:
    """(size, what the smallest size that failed said), from the size `first` on; 0 where none trains.

    try_size: why a size does not train, or nothing.
    """
    search = MicroBatchSearch(first)
    while (size := search.next_size()) is not None:
        search.record(size, try_size(size))
    return search.largest, search.beyond


def trains(family: Family, config: Config, device: torch.device, size: int) -> str:
    """Why a step of this micro-batch size fails, or nothing. Raises what has left the GPU unusable."""
    reason = ""
    try:
        family.optimizer.backward(family.loss(random_batch(sized(config, micro_batch=size), 0, device)))
        family.optimizer.step(family.learning_rate)
        synchronise(device)
    except Exception as error:
        if not works(device):
            raise
        reason = "memory is short" if is_out_of_memory(error) else failure(error)[1]
    family.drop_gradients()
    free_memory()
    return reason
