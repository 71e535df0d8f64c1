"""Training on several ranks: ours in order and by torch's own reduction, a plain GPT under FSDP2, and bytes sent."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.configs import NamedConfig, read_config, under
from benchmarks.rank_processes import run_on_ranks
from benchmarks.runner import Bench, Case, Row
from benchmarks.scale_ranks import FEWEST_ROUNDS, OURS, count, measure
from benchmarks.scale_targets import BASE, COUNTED, PLAIN, PLAIN_CHECKPOINT, PLAIN_SAC, REDUCTIONS
from benchmarks.settings import BenchmarkSetting
from benchmarks.timing import summary
from megaselect.comparison.step_times import quantiles
from megaselect.config import Config
from megaselect.devices import DTYPES
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan

CPU_CONFIG, GPU_CONFIG = str(Path(__file__).with_name("scale.yaml")), "gpt2-124m"
REPLICAS = 2
BASELINES = (PLAIN, PLAIN_CHECKPOINT, PLAIN_SAC)
START_SECONDS = 60.0  # of processes that import torch and make the models
FEWEST_SECONDS = 10.0  # of each step that is taken, on a CPU that others use too


def cases(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> list[Case]:
    """Times, then bytes on as many ranks, then bytes of replicas that each share, on twice as many."""
    named = _named(arguments, bench, dtype)
    sizes = f"{named.name} s={named.config.model.seq_length} b={named.config.training.micro_batch_size}"
    kind = f"{sizes} x{arguments.accumulate} {named.config.training.dtype} {named.config.model.attention}"
    ranks, accumulate = arguments.ranks, arguments.accumulate
    spec = repr((named, accumulate))
    timed = START_SECONDS + bench.seconds
    replicas = {"replicas": REPLICAS}
    made = [Case(f"step {kind}, {ranks} ranks", functools.partial(_step_case, named, ranks, accumulate), timed, spec)]
    for size, settings, note in ((ranks, {}, ""), (REPLICAS * ranks, replicas, f", {REPLICAS} replicas")):
        run = functools.partial(_bytes_case, named, size, accumulate, settings)
        made.append(Case(f"bytes sent {kind}, {size} ranks{note}", run, START_SECONDS, spec))
    return made


def _named(arguments: argparse.Namespace, bench: Bench, dtype: torch.dtype) -> NamedConfig:
    named = read_config(arguments.config or (GPU_CONFIG if bench.on_gpu else CPU_CONFIG))
    attention = arguments.attention or ("fused" if bench.on_gpu else "unfused")
    sections = named.config.to_dict()
    sections["model"]["attention"] = attention
    sections["training"] |= {
        "micro_batch_size": arguments.micro_batch or named.config.training.micro_batch_size,
        "device": "cuda" if bench.on_gpu else "cpu",
        "dtype": next(name for name, each in DTYPES.items() if each == dtype),
    }
    return NamedConfig(named.name, _of_micro_batches(sections, 1), named.own_length)


def _of_micro_batches(sections: Mapping[str, Any], number: int) -> Config:
    """A step of so many."""
    training = sections["training"]
    return Config.from_dict(
        {**sections, "training": {**training, "global_batch_size": number * training["micro_batch_size"]}}
    )


def _shape(named: NamedConfig, ranks: int, accumulate: int) -> Row:
    config = named.config
    return {
        "config": named.name,
        "ranks": ranks,
        "accumulated": accumulate,
        "sequence": config.model.seq_length,
        "micro_batch": config.training.micro_batch_size,
        "dtype": config.training.dtype,
        "attention": config.model.attention,
    }


def _sections(named: NamedConfig, ranks: int, accumulate: int) -> dict[str, Any]:
    """For ranks: without what each of their trainers has of its own."""
    sections = _of_micro_batches(named.config.to_dict(), ranks * accumulate).to_dict()
    return {name: section for name, section in sections.items() if name not in ("recompute", "parallel")}


def _too_few_gpus(shape: Row, ranks: int, bench: Bench) -> list[Row]:
    if not bench.on_gpu or torch.cuda.device_count() >= ranks:
        return []
    reason = f"{ranks} ranks need as many GPUs, and torch sees {torch.cuda.device_count()}"
    return [{**shape, "contender": "", "status": "skipped", "reason": reason}]


def _step_case(named: NamedConfig, ranks: int, accumulate: int, bench: Bench) -> list[Row]:
    shape = _shape(named, ranks, accumulate)
    skipped = _too_few_gpus(shape, ranks, bench)
    if skipped:
        return skipped
    rounds = max(bench.rounds, FEWEST_ROUNDS)
    steps = (FEWEST_ROUNDS + 1) * (len(OURS) + len(BASELINES))
    found = run_on_ranks(
        ranks,
        measure,
        limit=START_SECONDS + bench.seconds + FEWEST_SECONDS * steps,
        config=_sections(named, ranks, accumulate),
        baselines=BASELINES,
        sdpa=bench.on_gpu,
        rounds=rounds,
        seconds=bench.seconds,
    )[0]
    return [_step_row(shape, label, found, named) for label in found["milliseconds"]]


def _step_row(shape: Row, label: str, found: Mapping[str, Any], named: NamedConfig) -> Row:
    times, first = found["milliseconds"][label], found["milliseconds"][BASE]
    row = {**shape, "contender": label, "status": "ok", "reason": "", "rank_step_ms": summary(times)}
    row |= {"all_rank_step_ms": times, "ratio_to": BASE}
    row["ratio"] = quantiles([mine / other for mine, other in zip(times, first, strict=True)])._asdict()
    used, base = found["processor"][label], found["processor"][BASE]
    row |= {"processor_ms": median(used), "all_processor_ms": used}
    row["processor_ratio"] = median(mine / other for mine, other in zip(used, base, strict=True))
    row |= {f"{phase}_ms": span for phase, span in found["phases"][label].items()}
    row["saved_measured"] = found["saved"].get(label)
    if label in OURS and row["saved_measured"] is not None:
        config = under(named.config, BenchmarkSetting(named.config.model.attention, OURS[label][0]))
        layers = LayerShape.of(config, DTYPES[config.training.dtype].itemsize)
        row["saved_predicted"] = saved_bytes(layers, make_plan(config.recompute, config.model.num_layers))
    return row


def _bytes_case(
    named: NamedConfig, ranks: int, accumulate: int, settings: Mapping[str, Any], bench: Bench
) -> list[Row]:
    shape = _shape(named, ranks, accumulate)
    skipped = _too_few_gpus(shape, ranks, bench)
    if skipped:
        return skipped
    shared = [sharding for sharding in COUNTED if sharding != "none" or not settings]
    ways = {(sharding, reduction): settings for sharding in shared for reduction in REDUCTIONS}
    parallel = {" ".join(way): {"sharding": way[0], "reduction": way[1], **settings} for way, settings in ways.items()}
    found = run_on_ranks(
        ranks,
        count,
        limit=START_SECONDS + FEWEST_SECONDS * 2 * len(ways),
        config=_sections(named, ranks, accumulate),
        parallel=parallel,
    )
    rows = []
    for (sharding, reduction), label in zip(ways, parallel, strict=True):
        sent = [sum(of_rank[label].values()) for of_rank in found]
        row = {**shape, "contender": label, "status": "ok", "reason": "", "sharding": sharding}
        row |= {"reduction": reduction, "replicas": settings.get("replicas", 1)}
        rows.append({**row, "sent_bytes": max(sent), "sent_by_function": found[0][label], "all_sent_bytes": sent})
    return rows
