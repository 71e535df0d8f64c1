"""One recompute setting of one attention choice, predicted: bytes, FLOPs, time. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from megaselect.config import Config, RecomputeConfig
from megaselect.distributed.layout import Layout
from megaselect.errors import ConfigError
from megaselect.estimation.target import Target
from megaselect.prediction.assumed_time import micro_batch_seconds, optimizer_seconds
from megaselect.prediction.chunks import of_chunk
from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.parallel import Parallel, Stage, stages
from megaselect.prediction.peak import BEFORE_THE_LAYERS, Peak, Situation, step_peak
from megaselect.prediction.saved_bytes import LayerShape, bytes_per_layer, outside_tensors, saved_tensors
from megaselect.prediction.sharing import Sharing
from megaselect.prediction.weights import StaticBytes, stage_parameters, static_bytes
from megaselect.recomputation.plan import RecomputePlan, make_plan

MAX_MICRO_BATCH = 1 << 20


@dataclass(frozen=True)
class Case:
    """What all rows of an estimate share."""

    config: Config
    target: Target
    parallel: Parallel

    def shape(self, attention: str, batch: int | None = None) -> LayerShape:
        """Of a micro-batch, on one rank."""
        whole = LayerShape.of(self.config, self.target.element_bytes, batch)
        return replace(
            whole,
            attention=attention,
            tensor_parallel=self.parallel.tensor,
            sequence_parallel=self.parallel.sequence,
        )

    @cached_property
    def sharing(self) -> Sharing:
        """Among the data-parallel ranks. Raises ConfigError where the replicas do not divide them."""
        section = self.config.parallel
        return Sharing(Layout.of(section, self.parallel.data, rank=0), section.reduction)

    def micro_batches(self, batch: int) -> int:
        """Of a data-parallel rank in a step, for a micro-batch size."""
        return max(self.config.training.global_batch_size // (batch * self.parallel.data), 1)

    @property
    def layers_per_chunk(self) -> int:
        """Layers that run in a row on one rank."""
        return self.config.model.num_layers // self.parallel.model_chunks


class RankBytes(NamedTuple):
    """The rank that holds the most. saved: by all micro-batches that wait there, by tensor."""

    stage: Stage
    saved: int
    by_name: dict[str, int]
    static: StaticBytes
    peak: Peak


@dataclass(frozen=True)
class EstimateRow:
    """A setting. Bytes are those of the fullest rank; FLOPs are of a micro-batch, divided by the ranks that share a
    model; step_seconds: None where no speed is assumed. working_set_bytes: the most that one layer's (or chunk's)
    backward holds beyond what is kept. largest_micro_batch: 0 where none fits.
    """

    name: str
    attention: str
    settings: RecomputeConfig
    plan: RecomputePlan
    rank: RankBytes
    saved_bytes_per_layer: int
    layer_tensors: dict[str, int]
    working_set_bytes: int
    model_flops: int
    hardware_flops: int
    step_seconds: float | None
    largest_micro_batch: int

    @property
    def recompute_overhead(self) -> float:
        """Hardware FLOPs over model FLOPs, less one."""
        return self.hardware_flops / self.model_flops - 1


def make_row(case: Case, name: str, attention: str, settings: RecomputeConfig) -> EstimateRow:
    """Predict a setting. Raises ConfigError for layers picked by number in a pipeline."""
    if settings.layers is not None and case.parallel.pipeline > 1:
        raise ConfigError("--recompute-layers with --pipeline-parallel is not predicted; give one of the two")
    return planned_row(case, name, attention, settings, make_plan(settings, case.layers_per_chunk))


def planned_row(case: Case, name: str, attention: str, settings: RecomputeConfig, plan: RecomputePlan) -> EstimateRow:
    """The same for a plan that is there."""
    batch = case.config.training.micro_batch_size
    shape, ranks = case.shape(attention), case.parallel.tensor * case.parallel.pipeline
    # Every rank's layers in a row, for sums over layers alone: its chunks do not number them.
    whole = RecomputePlan(
        plan.mode, plan.modules * case.parallel.model_chunks, plan.chunks * case.parallel.model_chunks, False
    )
    flops = micro_batch_flops(replace(shape, tensor_parallel=1, sequence_parallel=False), whole)
    per_layer = bytes_per_layer(shape, plan)
    fullest = max(per_layer, key=lambda layer: per_layer[layer])
    return EstimateRow(
        name=name,
        attention=attention,
        settings=settings,
        plan=plan,
        rank=fullest_rank(case, shape, plan, batch),
        saved_bytes_per_layer=per_layer[fullest],
        layer_tensors={row.name: row.bytes for row in saved_tensors(shape, plan) if row.layer == fullest},
        working_set_bytes=_working_set(case, shape, plan),
        model_flops=flops.model // ranks,
        hardware_flops=flops.hardware // ranks,
        step_seconds=_step_seconds(case, shape, whole, batch),
        largest_micro_batch=_largest_micro_batch(case, attention, plan),
    )


def fullest_rank(case: Case, shape: LayerShape, plan: RecomputePlan, batch: int) -> RankBytes:
    """Of the first and the last pipeline stage the one with the higher peak."""
    count = case.micro_batches(batch)
    candidates = stages(case.parallel, case.config.model.num_layers, count)
    return max((_rank(case, shape, plan, stage, count) for stage in candidates), key=lambda rank: rank.peak.bytes)


def _rank(case: Case, shape: LayerShape, plan: RecomputePlan, stage: Stage, micro_batches: int) -> RankBytes:
    """plan: of the layers that run in a row there."""
    by_name: dict[str, int] = {}
    for tensor in saved_tensors(shape, plan):
        copies = _copies(case, stage, tensor.layer, tensor.name, micro_batches)
        if copies:
            by_name[tensor.name] = by_name.get(tensor.name, 0) + copies * tensor.bytes
    saved = sum(by_name.values())
    running = sum(bytes_per_layer(shape, plan).values()) + sum(
        size
        for name, size in outside_tensors(shape, plan).items()
        if (stage.first if name in BEFORE_THE_LAYERS else stage.last)
    )
    static = static_bytes(shape, stage.layers, case.sharing.layout, stage.first, stage.last)
    situation = Situation(
        layers=stage.layers,
        micro_batches=micro_batches,
        on_gpu=case.target.on_gpu,
        first=stage.first,
        last=stage.last,
        waiting_bytes=saved - running,
        sharing=case.sharing,
    )
    return RankBytes(stage, saved, by_name, static, step_peak(shape, plan, static, situation))


def _copies(case: Case, stage: Stage, layer: str, name: str, micro_batches: int) -> int:
    """How many micro-batches hold a tensor at once."""
    if layer:
        return stage.in_flight
    if name in BEFORE_THE_LAYERS:
        return min(case.parallel.pipeline, micro_batches) if stage.first else 0
    return 1 if stage.last else 0


def _working_set(case: Case, shape: LayerShape, plan: RecomputePlan) -> int:
    situation = Situation(len(plan.modules), case.micro_batches(shape.batch), case.target.on_gpu)
    sizes = (of_chunk(situation.context(shape), plan, chunk) for chunk in plan.chunks)
    return max(size.backward.between - size.kept for size in sizes)


def _step_seconds(case: Case, shape: LayerShape, whole: RecomputePlan, batch: int) -> float | None:
    """Of an optimizer step: a pipeline's idle share counts, communication does not."""
    speed, parallel = case.target.speed, case.parallel
    if speed is None:
        return None
    count = case.micro_batches(batch)
    busy = count * micro_batch_seconds(shape, whole, speed) / parallel.pipeline
    idle = busy * (parallel.pipeline - 1) / (count * parallel.virtual_stages)
    parameters = stage_parameters(shape, case.config.model.num_layers // parallel.pipeline, True, True)
    return busy + idle + optimizer_seconds(parameters, speed)


def _largest_micro_batch(case: Case, attention: str, plan: RecomputePlan) -> int:
    """By doubling, then halving the gap: the peak grows with the batch."""

    def fits(batch: int) -> bool:
        shape = case.shape(attention, batch)
        return fullest_rank(case, shape, plan, batch).peak.bytes <= case.target.usable_bytes

    too_large = 1
    while too_large <= MAX_MICRO_BATCH and fits(too_large):
        too_large *= 2
    largest = too_large // 2
    while too_large - largest > 1:
        middle = (largest + too_large) // 2
        largest, too_large = (middle, too_large) if fits(middle) else (largest, middle)
    return largest
