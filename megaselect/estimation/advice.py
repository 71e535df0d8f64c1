"""One sentence: which setting to take. No torch."""

from __future__ import annotations

from megaselect.estimation.rows import Case, EstimateRow
from megaselect.recomputation.presets import AUTO, PRESETS, setting_flags
from megaselect.units import size

WORTH_A_WORD = 0.9  # of the step time


def advise(case: Case, rows: dict[str, dict[str, EstimateRow]]) -> str:
    """The setting with the least to compute again that fits, of the config's attention first, then of fused."""
    budget, own = case.target.usable_bytes, case.config.model.attention
    room = f"{size(budget)} ({case.target.memory_note})"
    choices = [attention for attention in (own, "fused") if attention in rows]
    named = (*PRESETS, AUTO)
    candidates = [row for attention in dict.fromkeys(choices) for row in rows[attention].values() if row.name in named]
    fitting = [row for row in candidates if row.rank.peak.bytes <= budget]
    if not fitting:
        return _nothing_fits(case, candidates, room)
    everything = rows[own]["none"]
    peak = size(everything.rank.peak.bytes)
    if everything in fitting:
        faster = _faster(everything, rows["fused"]["none"]) if "fused" in rows else ""
        flags = setting_flags(everything.settings)
        return f"It fits without recomputation: {flags}, with a peak of {peak} of {room}{faster}."
    best = min(fitting, key=lambda row: (_cost(row), row.attention != own, candidates.index(row)))
    flags = setting_flags(best.settings) + ("" if best.attention == own else f" --attention {best.attention}")
    return (
        f"Without recomputation a step needs {peak}, more than {room}: take {flags}, with a "
        f"peak of {size(best.rank.peak.bytes)}{_price(best)}."
    )


def _dividing(case: Case, most: int) -> int:
    """The largest micro-batch up to `most` that divides a rank's share of the global batch, as training asks."""
    share = case.config.training.global_batch_size // case.parallel.data
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)


def _faster(own: EstimateRow, fused: EstimateRow) -> str:
    """Where fused attention is predicted to save time worth a word."""
    if own.step_seconds is None or fused.step_seconds is None or fused.step_seconds > WORTH_A_WORD * own.step_seconds:
        return ""
    return f"; with --attention fused a step is predicted to take {1 - fused.step_seconds / own.step_seconds:.0%} less"


def _cost(row: EstimateRow) -> float:
    return row.step_seconds if row.step_seconds is not None else row.hardware_flops


def _price(row: EstimateRow) -> str:
    if not row.recompute_overhead:
        return " and no matrix product computed again"
    return f" and {row.recompute_overhead:.1%} more FLOPs"


def _nothing_fits(case: Case, candidates: list[EstimateRow], room: str) -> str:
    least = min(candidates, key=lambda row: row.rank.peak.bytes)
    static = least.rank.static.total
    need = f"Nothing fits into {room}: the least is {size(least.rank.peak.bytes)}, with {setting_flags(least.settings)}"
    if least.attention != case.config.model.attention:
        need += f" --attention {least.attention}"
    if least.largest_micro_batch:
        smaller = _dividing(case, least.largest_micro_batch)
        return f"{need}. A smaller micro-batch fits: --training.micro-batch-size {smaller}."
    return (
        f"{need}; weights, gradients and optimizer alone take {size(static)}: share them over more GPUs (--gpus, which "
        "torchrun trains on, with --tensor-parallel or --pipeline-parallel for what Megatron-LM would)."
    )
