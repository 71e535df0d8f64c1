"""An estimate as plain data, for JSON. Others script against these keys: they stay. No torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megaselect.estimation.estimate import Estimate, module_sets
from megaselect.estimation.rows import Case, EstimateRow
from megaselect.prediction.saved_bytes import outside_tensors
from megaselect.prediction.weights import parameter_count
from megaselect.recomputation.plan import describe_plan


def as_data(estimate: Estimate) -> dict[str, Any]:
    """Bytes are bytes, times seconds; FLOPs are those of one micro-batch."""
    case, layout = estimate.case, estimate.case.sharing.layout
    shape = case.shape(case.config.model.attention)
    attention, name = estimate.own
    return {
        "micro_batch_size": case.config.training.micro_batch_size,
        "micro_batches_per_step": case.micro_batches(case.config.training.micro_batch_size),
        "device": case.target.name,
        "dtype": case.target.dtype,
        "usable_bytes": case.target.usable_bytes,
        "parallel": {**asdict(case.parallel), "sharding": layout.sharding, "replicas": layout.replicas},
        "parameters": parameter_count(shape, case.config.model.num_layers),
        "static_bytes": asdict(estimate.rows[attention][name].rank.static),
        "own": {"attention": attention, "setting": name},
        "attention": {
            choice: {
                "modes": {row.name: row_data(case, row) for row in rows.values()},
                "module_sets": {row.name: row_data(case, row) for row in module_sets(case, choice).values()},
            }
            for choice, rows in estimate.rows.items()
        },
        "step_seconds_assume": case.target.speed.assumption if case.target.speed else None,
        "advice": estimate.advice,
    }


def row_data(case: Case, row: EstimateRow) -> dict[str, Any]:
    """One setting."""
    return {
        "saved_bytes_per_layer": row.saved_bytes_per_layer,
        "saved_bytes": row.rank.saved,
        "saved_bytes_by_tensor": row.rank.by_name,
        "layer_bytes_by_tensor": row.layer_tensors,
        "outside_layers_by_tensor": outside_tensors(case.shape(row.attention), row.plan),
        "working_set_bytes": row.working_set_bytes,
        "peak_bytes": row.rank.peak.bytes,
        "peak_moment": row.rank.peak.moment,
        "pipeline_stage": row.rank.stage.name,
        "fits": row.rank.peak.bytes <= case.target.usable_bytes,
        "model_flops": row.model_flops,
        "hardware_flops": row.hardware_flops,
        "recompute_overhead": row.recompute_overhead,
        "step_seconds": row.step_seconds,
        "largest_micro_batch": row.largest_micro_batch,
        "plan": describe_plan(row.plan),
    }
