"""What a run says and keeps of the plan that --recompute auto has made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megaselect.planning.auto import AutoPlan
from megaselect.recomputation.plan import describe_plan
from megaselect.units import size

PLAN_FILE = "recompute_plan.json"


def plan_note(automatic: AutoPlan) -> str:
    """The predicted peak and cost, in a line."""
    peak, budget = size(automatic.peak.bytes), size(automatic.budget_bytes)
    cost = (
        f"{1000 * automatic.extra_seconds:.1f} ms a micro-batch more than none, by times measured on one layer"
        if automatic.extra_seconds
        else "as fast as none"
    )
    return f"note: auto predicts that tensors hold at most {peak} of {budget}, in the {automatic.peak.moment}; {cost}"


def plan_dict(automatic: AutoPlan) -> dict[str, Any]:
    """Plain data: layer by layer what is recomputed, or which layers are one checkpointed chunk."""
    plan = automatic.plan
    return {
        "description": describe_plan(plan),
        "budget_bytes": automatic.budget_bytes,
        "predicted_peak_bytes": automatic.peak.bytes,
        "predicted_peak_moment": automatic.peak.moment,
        "extra_seconds_per_micro_batch": automatic.extra_seconds,
        "recompute_embedding_mask": plan.recompute_embedding_mask,
        "chunks": [
            {
                "first": chunk.first,
                "count": chunk.count,
                "checkpointed": chunk.checkpointed,
                "modules": sorted(plan.modules[chunk.first]),
            }
            for chunk in plan.chunks
        ],
    }


def save_plan(run_dir: Path, automatic: AutoPlan) -> None:
    """Into the run directory, which is writable."""
    (run_dir / PLAN_FILE).write_text(json.dumps(plan_dict(automatic), indent=2) + "\n", encoding="utf-8")
