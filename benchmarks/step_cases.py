"""Time, memory and bits of whole training steps. One step is one micro-batch: forward, backward, clip, AdamW.

Every contender takes one step a round. MFU counts matrix products only, attention's s² products in full (12*L*h*s a
token), as Korthikanti et al. 2022 do; a device without a data sheet on file has none.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.configs import NamedConfig, under
from benchmarks.device import (
    allocated_bytes,
    allocation_retries,
    free_memory,
    peak_bytes,
    reset_peak,
)
from benchmarks.families import Family, RandomBatch, megaselect_family, random_batch, refusal
from benchmarks.runner import Bench, Case, Row
from benchmarks.settings import BenchmarkSetting
from benchmarks.timing import summary
from megaselect import ledger
from megaselect.comparison.step_times import quantiles
from megaselect.config import Config
from megaselect.devices import peak_flops, synchronise
from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan
from megaselect.training.phases import Clock

PHASES = ("forward", "backward", "optimizer")
FEWEST_ROUNDS = 3
UNSEEN_BY_HOOKS = ("compiled", "SAC")  # baselines whose saved bytes the ledger would not see, or see wrongly
LIKE_A_BASELINE = BenchmarkSetting("unfused", "none")  # whose mathematics needs as many products
MakeFamily = Callable[[], Family]


@dataclass
class Contender:
    """A family's variant. setting: None for a baseline. row: its results so far; milliseconds: by round and phase."""

    family: Family
    variant: str
    setting: BenchmarkSetting | None
    row: Row
    milliseconds: list[list[float]] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether it has neither failed nor been refused."""
        return self.row["status"] == "ok"

    def prepare(self) -> None:
        """Make the family run this variant."""
        self.family.variants[self.variant]()


def step_case(
    key: str,
    named: NamedConfig,
    settings: Sequence[BenchmarkSetting],
    dtype: torch.dtype,
    seconds: float,
    baselines: Sequence[tuple[str, MakeFamily]] = (),
) -> Case:
    """Compare settings, and baselines (name, maker), on one config. seconds: the case's limit, see Case."""
    spec = repr((named, list(settings), dtype, [name for name, _ in baselines]))
    return Case(key, functools.partial(_run, named, settings, dtype, baselines), seconds, spec)


def _run(
    named: NamedConfig,
    settings: Sequence[BenchmarkSetting],
    dtype: torch.dtype,
    baselines: Sequence[tuple[str, MakeFamily]],
    bench: Bench,
) -> list[Row]:
    config = named.config
    contenders, rows = make_contenders(named, settings, dtype, baselines, bench)
    if baselines and len(baselines) == sum(row["status"] == "skipped" for row in rows):
        return rows  # ours alone are measured elsewhere
    batch = random_batch(config, 0, bench.device)
    expected: dict[str, list[Tensor]] = {}
    for contender in contenders:  # all before the first step: after it the weights are others
        guarded(bench, contender, functools.partial(_inspect, contender, config, batch, expected))
    expected.clear()
    for contender in contenders:
        guarded(bench, contender, functools.partial(_measure_peak, contender, batch, bench.device))
    free_memory()
    _take_turns([item for item in contenders if item.alive], config, bench)
    _add_times(contenders, config, dtype, bench.device)
    return [item.row for item in contenders] + rows


def make_contenders(
    named: NamedConfig,
    settings: Sequence[BenchmarkSetting],
    dtype: torch.dtype,
    baselines: Sequence[tuple[str, MakeFamily]],
    bench: Bench,
) -> tuple[list[Contender], list[Row]]:
    """All that can run, and rows for what is refused or cannot be made."""
    config, shape = named.config, _shape_row(named, dtype)
    refused = {setting: refusal(under(config, setting), dtype) for setting in settings}
    rows = [
        {**shape, "contender": setting.label, "status": "refused", "reason": reason}
        for setting, reason in refused.items()
        if reason
    ]
    allowed = [setting for setting in settings if not refused[setting]]
    makers: list[tuple[str, MakeFamily]] = []
    if allowed:
        makers.append(("Megaselect", lambda: megaselect_family(config, allowed, bench.device, dtype)))
    by_label = {setting.label: setting for setting in allowed}
    contenders = []
    for name, make in (*makers, *baselines):
        made: list[Family] = []
        status, reason = bench.attempt(name, lambda make=make, made=made: made.append(make()))
        if not made:
            status = "skipped" if reason.startswith(("ImportError", "ModuleNotFoundError")) else status
            rows.append({**shape, "contender": name, "status": status, "reason": reason})
            continue
        family = made[0]
        count = sum(parameter.numel() for parameter in family.model.parameters())
        for variant in family.variants:
            row = {**shape, "contender": variant, "parameters": count, "status": "ok", "reason": ""}
            contenders.append(Contender(family, variant, by_label.get(variant), row))
    return contenders, rows


def _shape_row(named: NamedConfig, dtype: torch.dtype) -> Row:
    return {
        "config": named.name,
        "sequence": named.config.model.seq_length,
        "micro_batch": named.config.training.micro_batch_size,
        "dtype": str(dtype).removeprefix("torch."),
    }


def guarded(bench: Bench, contender: Contender, work: Callable[[], Any]) -> None:
    """Run, if nothing failed before; where it raises, the contender's row says why and its memory is free again."""
    if not contender.alive:
        return
    contender.row["status"], contender.row["reason"] = bench.attempt(contender.variant, work)
    if not contender.alive:
        contender.family.drop_gradients()
        free_memory()


def _inspect(contender: Contender, config: Config, batch: RandomBatch, expected: dict[str, list[Tensor]]) -> None:
    """Saved bytes, loss and bits, from one forward and backward. Compiles what is to be compiled."""
    family, row, setting = contender.family, contender.row, contender.setting
    contender.prepare()
    if setting is None and any(way in contender.variant for way in UNSEEN_BY_HOOKS):
        loss = family.loss(batch)
    else:
        with ledger.record(family.model) as kept:
            loss = family.loss(batch)
        row["saved_measured"] = kept.total
    family.optimizer.backward(loss)
    if setting is not None:
        chosen = under(config, setting)
        shape = LayerShape.of(chosen, next(family.model.parameters()).element_size())
        row["saved_predicted"] = saved_bytes(shape, make_plan(chosen.recompute, chosen.model.num_layers))
        row["same_bits"] = _same_bits(setting, [loss.detach(), *family.gradients()], expected)
    row["loss"] = loss.item()
    family.drop_gradients()


def _measure_peak(contender: Contender, batch: RandomBatch, device: torch.device) -> None:
    """Two steps that are not timed, the first of which makes the moments: the peak of the second."""
    contender.prepare()
    step(contender.family, batch, Clock(device))
    before = allocated_bytes(device)
    reset_peak(device)
    step(contender.family, batch, Clock(device))
    highest = peak_bytes(device)
    if before is not None and highest is not None:
        contender.row["peak_bytes"] = highest - before + _state_bytes(contender.family)


def _same_bits(
    setting: BenchmarkSetting, results: list[Tensor | None], expected: dict[str, list[Tensor]]
) -> bool | None:
    """Whether loss and gradients equal those of the first setting with this attention, None for that one itself."""
    group = f"{setting.attention}{setting.compiled}"
    if group not in expected:
        expected.clear()  # one set of gradients at a time
        expected[group] = [tensor.clone() for tensor in results if tensor is not None]
        return None
    return all(
        right is not None and torch.equal(left, right) for left, right in zip(expected[group], results, strict=True)
    )


def _state_bytes(family: Family) -> int:
    """Weights, master weights and moments, which exist between steps."""
    tensors = {tensor.untyped_storage()._cdata: tensor for tensor in family.model.parameters()}
    for tensor in family.optimizer.tensors().values():
        tensors[tensor.untyped_storage()._cdata] = tensor
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values() if tensor.device.type != "cpu")


def step(family: Family, batch: RandomBatch, clock: Clock) -> list[float]:
    """Milliseconds of each phase."""
    clock.clear()
    clock.mark()
    loss = family.loss(batch)
    clock.mark()
    family.optimizer.backward(loss)
    clock.mark()
    family.optimizer.step(family.learning_rate)
    clock.mark()
    return clock.milliseconds()


def _take_turns(contenders: Sequence[Contender], config: Config, bench: Bench) -> None:
    """Time one step each a round; each round begins with another contender. A failure ends that contender alone."""
    clock = Clock(bench.device)
    retries = allocation_retries(bench.device)
    rounds, number = bench.rounds + 1, 0
    while number < rounds:
        batch = random_batch(config, number, bench.device)
        start = number % max(len(contenders), 1)
        taken = 0.0
        for contender in (*contenders[start:], *contenders[:start]):
            guarded(bench, contender, functools.partial(_timed_step, contender, batch, clock))
            taken += sum(contender.milliseconds[-1]) if contender.alive else 0.0
        if number == 0:  # a round to warm up
            affordable = int(1e3 * bench.seconds / max(taken, 1e-3))
            rounds = 1 + min(max(affordable, FEWEST_ROUNDS), bench.rounds)  # never more than were asked for
            for contender in contenders:
                contender.milliseconds.clear()
        number += 1
    synchronise(bench.device)
    after = allocation_retries(bench.device)
    for contender in contenders:
        contender.row["allocation_retries"] = None if after is None else after - (retries or 0)


def _timed_step(contender: Contender, batch: RandomBatch, clock: Clock) -> None:
    contender.prepare()
    contender.milliseconds.append(step(contender.family, batch, clock))


def _add_times(contenders: Sequence[Contender], config: Config, dtype: torch.dtype, device: torch.device) -> None:
    """Adds medians; ratios are medians of the ratios within a round to the first contender that ran."""
    timed = [item for item in contenders if item.alive and item.milliseconds]
    first = [sum(phases) for phases in timed[0].milliseconds] if timed else []
    peak = peak_flops(device, dtype)
    tokens = config.training.micro_batch_size * config.model.seq_length
    for item in timed:
        totals = [sum(phases) for phases in item.milliseconds]
        item.row["step_ms"] = summary(totals)
        item.row["all_step_ms"] = totals
        for number, phase in enumerate(PHASES):
            item.row[f"{phase}_ms"] = quantiles([phases[number] for phases in item.milliseconds]).median
        ratios = [mine / theirs for mine, theirs in zip(totals, first, strict=True)]
        item.row["ratio"] = quantiles(ratios)._asdict()
        item.row["ratio_to"] = timed[0].variant
        seconds = item.row["step_ms"]["median"] / 1e3
        item.row["tokens_per_s"] = tokens / seconds
        chosen = under(config, item.setting or LIKE_A_BASELINE)
        plan = make_plan(chosen.recompute, chosen.model.num_layers)
        flops = micro_batch_flops(LayerShape.of(chosen, dtype.itemsize), plan)
        item.row["mfu"] = flops.model / seconds / peak if peak else None
        item.row["hfu"] = flops.hardware / seconds / peak if peak and item.setting else None
