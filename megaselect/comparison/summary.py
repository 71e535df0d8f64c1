"""From the measurements of all rounds to the rows of a result."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from megaselect.comparison.measurement import TrainMeasurement
from megaselect.comparison.result import (
    Agreement,
    FailedSetting,
    PeakBytes,
    SettingResult,
    Speed,
    Spread,
    StepSample,
    TrainedSetting,
)
from megaselect.comparison.row import Row
from megaselect.comparison.step_times import quantiles


@dataclass
class Measured:
    """What the rounds of one row brought. rounds: in order; failure: why there are no more; absence: see Answer."""

    row: Row
    rounds: list[TrainMeasurement] = field(default_factory=list)
    failure: str | None = None
    absence: str | None = None
    largest_micro_batch: int | None = None


def summarise(measured: Sequence[Measured], tokens_per_step: int | None) -> tuple[SettingResult, ...]:
    """The rows of the result, in the same order, without those that are absent.

    A row with a failure keeps nothing but its name and the failure.
    """
    references = {item.row.about.attention: item for item in measured if item.row.is_reference}
    present = [item for item in measured if item.absence is None]
    return tuple(_setting(item, references.get(item.row.about.attention), tokens_per_step) for item in present)


def _setting(item: Measured, reference: Measured | None, tokens_per_step: int | None) -> SettingResult:
    about = dict(vars(item.row.about))
    if item.failure is not None:
        return FailedSetting(**about, failure=item.failure)
    first = item.rounds[0]
    if reference is item or (reference and reference.failure is not None):
        reference = None  # nothing to compare with
    return TrainedSetting(
        **about,
        model_flops=first.model_flops,
        hardware_flops=first.hardware_flops,
        saved=first.saved,
        static=first.static,
        peak=_peak(item.rounds),
        predicted_peak_bytes=first.predicted_peak_bytes,
        speed=_speed(item.rounds, reference.rounds if reference else None, tokens_per_step),
        samples=tuple(sample for one in item.rounds for sample in one.samples),
        losses=first.losses,
        grad_norms=first.grad_norms,
        weights_sha256=first.weights_sha256,
        gradients_sha256=first.gradients_sha256,
        rounds_equal=all(_trace(one) == _trace(first) for one in item.rounds) if len(item.rounds) > 1 else None,
        agreement=_agreement(first, reference.row.name, reference.rounds[0]) if reference else None,
        largest_micro_batch=item.largest_micro_batch,
        timeline=first.timeline,
    )


def _peak(rounds: Sequence[TrainMeasurement]) -> PeakBytes:
    """The highest of the allocator's values, the median of the process's, which varies."""
    allocated = [one.peak.allocated for one in rounds if one.peak.allocated is not None]
    reserved = [one.peak.reserved for one in rounds if one.peak.reserved is not None]
    resident = statistics.median_high(one.peak.rss for one in rounds)
    return PeakBytes(max(allocated, default=None), max(reserved, default=None), resident)


def _speed(
    rounds: Sequence[TrainMeasurement], references: Sequence[TrainMeasurement] | None, tokens_per_step: int | None
) -> Speed:
    first = rounds[0]
    samples = [sample for one in rounds for sample in one.samples]
    step = _spread(samples, lambda sample: sample.seconds)
    peak_per_step = first.peak_flops * step.median if first.peak_flops else None
    return Speed(
        step_seconds=step,
        forward_seconds=_spread(samples, lambda sample: sample.forward_seconds),
        backward_seconds=_spread(samples, lambda sample: sample.backward_seconds),
        optimizer_seconds=_spread(samples, lambda sample: sample.optimizer_seconds),
        recompute_seconds=_recompute_seconds(rounds, references) if references else None,
        tokens_per_s=tokens_per_step / step.median if tokens_per_step else None,
        mfu=_share(first.model_flops, peak_per_step),
        hfu=_share(first.hardware_flops, peak_per_step),
    )


def _share(flops: int | None, peak_per_step: float | None) -> float | None:
    return flops / peak_per_step if flops is not None and peak_per_step else None


def _spread(samples: Sequence[StepSample], value: Callable[[StepSample], float]) -> Spread:
    low, median, high = quantiles([value(sample) for sample in samples])
    return Spread(median, low, high)


def _recompute_seconds(rounds: Sequence[TrainMeasurement], references: Sequence[TrainMeasurement]) -> float:
    """Round by round, so that a slow stretch of the machine is not taken for recomputation."""
    pairs = zip(rounds, references, strict=False)
    return statistics.median(_backward(own.samples) - _backward(none.samples) for own, none in pairs)


def _backward(samples: Sequence[StepSample]) -> float:
    return statistics.median(sample.backward_seconds for sample in samples)


def _trace(one: TrainMeasurement) -> tuple[object, ...]:
    """All that two equal trainings share."""
    return one.losses, one.grad_norms, one.weights_sha256, one.gradients_sha256


def _steps(one: TrainMeasurement) -> Iterator[tuple[object, ...]]:
    """What two equal trainings share of each step."""
    digests = one.gradients_sha256 or (None,) * len(one.losses)
    return zip(one.losses, one.grad_norms, digests, strict=True)


def _agreement(own: TrainMeasurement, reference_name: str, reference: TrainMeasurement) -> Agreement:
    pairs = zip(_steps(own), _steps(reference), strict=True)
    differing = [step for step, (mine, theirs) in enumerate(pairs, 1) if mine != theirs]
    losses = [
        None if mine is None or theirs is None else mine - theirs
        for mine, theirs in zip(own.losses, reference.losses, strict=True)
    ]
    return Agreement(
        reference=reference_name,
        equal=_trace(own) == _trace(reference),
        first_different_step=differing[0] if differing else None,
        loss_differences=tuple(losses),
    )
