"""A run of one part, from arguments to a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import goals, headline, parts
from benchmarks.device import environment, fingerprint
from benchmarks.report import Report
from benchmarks.runner import Bench, Case, CaseLog, Row, run_cases
from megaselect.devices import resolve_device, resolve_dtype
from megaselect.errors import ConfigError

CASES = {
    "headline": headline.cases,
    "kernels": parts.kernels,
    "step": parts.step,
    "sweep": parts.sweep,
    "rivals": parts.rivals,
}
SECONDS = {"kernels": (3.0, 1.0)}  # of measuring a case, on a GPU and on a CPU
MODEL_SECONDS = (8.0, 5.0)
HEADLINE_SECONDS = (5.0, 2.0)
ROUNDS = (10, 5)


def run_part(arguments: argparse.Namespace) -> tuple[Report | None, bool]:
    """(report, whether bits or bytes are wrong); no report where cases are only to be listed."""
    device = resolve_device(arguments.device)
    dtype = resolve_dtype(getattr(arguments, "dtype", "auto"), device)
    bench = _bench(arguments, device)
    cases = [case for case in CASES[arguments.part](arguments, bench, dtype) if _wanted(case, arguments)]
    if not cases:
        raise ConfigError(f"no case is left: --filter {' '.join(arguments.filter)}")
    if arguments.list:
        print("\n".join(case.key for case in cases))
        return None, False
    record = environment(device, arguments.commit)
    log = CaseLog(log_path(arguments.out), fingerprint(record))
    outcome = run_cases(cases, bench, log, arguments.minutes)
    wrong = wrong_rows(outcome.rows)
    notes = [f"WRONG: {row['case']}, {row['contender']}: {why}" for row, why in wrong]
    if outcome.reused:
        notes.append(f"{outcome.reused} of {len(cases)} cases are from an earlier start on this device")
    if log.foreign:
        notes.append(f"{log.foreign} remembered cases are of another device, torch or code, and were not used")
    if arguments.part == "headline" and not bench.on_gpu:
        notes.append("the goals are meant for a GPU: here the bits alone are judged")
    judged = goals.judge(outcome.rows, bench.on_gpu) if arguments.part == "headline" else []
    report = Report(arguments.part, record, _plain(arguments), outcome.rows, outcome.left_out, notes, judged)
    return report, bool(wrong)


def log_path(out: Path | None) -> Path | None:
    """Where finished cases are remembered: report.cases.jsonl for report.md."""
    return None if out is None else out.with_suffix(".cases.jsonl")


def wrong_rows(rows: list[Row]) -> list[tuple[Row, str]]:
    """Of our own models: bits that differ, stored bytes that are not as predicted. sdpa is torch's, and not judged."""
    wrong = []
    for row in rows:
        if row["contender"].startswith("sdpa"):
            continue
        if row.get("different"):
            wrong.append((row, f"{len(row['different'])} tensors differ from none's"))
        if row.get("same_bits") is False:
            wrong.append((row, "loss or gradients differ from the first setting's"))
        predicted, measured = row.get("stored_predicted"), row.get("stored_measured")
        if predicted is not None and measured is not None and predicted != measured:
            wrong.append((row, f"keeps {measured} bytes, and {predicted} were predicted"))
    return wrong


def _bench(arguments: argparse.Namespace, device: Any) -> Bench:
    on_cpu = int(device.type != "cuda")
    defaults = {**SECONDS, "headline": HEADLINE_SECONDS}.get(arguments.part, MODEL_SECONDS)
    seconds = arguments.seconds or defaults[on_cpu]
    return Bench(device, arguments.rounds or ROUNDS[on_cpu], seconds, lambda line: print(line, file=sys.stderr))


def _wanted(case: Case, arguments: argparse.Namespace) -> bool:
    return all(part in case.key for part in arguments.filter)


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """As JSON can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
