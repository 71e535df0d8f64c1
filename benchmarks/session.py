"""A run of one part, from arguments to a report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    any_model,
    any_model_targets,
    attention_cases,
    headline,
    hidden_cases,
    parts,
    scale,
    scale_targets,
    scores_cases,
    targets,
)
from benchmarks.arguments import MINUTES
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
    "baselines": parts.baselines,
    "any-model": any_model.cases,
    "scale": scale.cases,
}
SECONDS = {"kernels": (3.0, 1.0), "scale": (20.0, 240.0)}  # of measuring a case, on a GPU and on a CPU
MODEL_SECONDS = (8.0, 5.0)
HEADLINE_SECONDS = (5.0, 2.0)
ROUNDS = (10, 5)
QUICK_ROUNDS, QUICK_SECONDS = 1, 0.01
DEVICE_LOST = 3  # exit status
OURS = (scores_cases.OURS, attention_cases.OURS, hidden_cases.OURS)
WRONG_ERROR = 0.05  # of a kernel: far beyond rounding in any dtype
IDLE_LOAD = 0.5  # a load average below it is this process's own start
NOT_REPEATED = ("part", "json", "out", "minutes", "list", "commit", "filter", "case")


def run_part(arguments: argparse.Namespace) -> tuple[Report | None, int]:
    """(report, exit status as run.main says); no report where cases are only to be listed, for a GPU anywhere."""
    device = torch.device("cuda") if arguments.list and arguments.device == "cuda" else resolve_device(arguments.device)
    cases, bench = cases_of(arguments, device)
    if arguments.list:
        print("\n".join(case.key for case in cases))
        return None, 0
    record = environment(device, arguments.commit)
    log = CaseLog(log_path(arguments.out), fingerprint(record) | {"rounds": bench.rounds, "seconds": bench.seconds})
    outcome = run_cases(cases, bench, log, arguments.minutes)
    wrong = wrong_rows(outcome.rows)
    report = Report(arguments.part, record, _plain(arguments), outcome.rows)
    report.not_measured = [
        {"case": case.key, "why": outcome.left_out[case.key], "command": command(arguments, case)}
        for case in cases
        if case.key in outcome.left_out
    ]
    report.notes = [f"WRONG: {row['case']}, {row['contender']}: {why}" for row, why in wrong]
    report.notes += _conditions(record, outcome.rows)
    if outcome.reused:
        report.notes.append(f"{outcome.reused} of {len(cases)} cases are from an earlier start on this device")
    if log.foreign:
        report.notes.append(
            f"{log.foreign} remembered cases, of another device, version, code or number of rounds, were not used"
        )
    report.targets, notes = _judged(arguments.part, outcome.rows, bench.on_gpu)
    report.notes += notes
    return report, DEVICE_LOST if outcome.lost else int(bool(wrong))


def _judged(part: str, rows: list[Row], on_gpu: bool) -> tuple[list[Row], list[str]]:
    """Targets, and notes on them. Those that a part is there for are listed though they are not measured."""
    if part == "scale":
        elsewhere = f"not measured on GPUs: `{scale_targets.COMMAND}` measures it where there are some"
        return scale_targets.judge(rows, on_gpu), [] if on_gpu else [elsewhere]
    if part == "any-model":
        return any_model_targets.judge(rows), []
    judged = targets.judge(rows, on_gpu)
    if part != "headline":
        judged = [target for target in judged if target["value"] is not None]
    missing = any(target["verdict"] == "not measured" for target in judged)
    return judged, [f"targets that are not measured: `{targets.COMMAND}` on an H100 measures them"] * missing


def _conditions(record: dict[str, Any], rows: list[Row]) -> list[str]:
    """What has disturbed the times."""
    notes = []
    if record["gpu"] is None and (record["load"] or 0) > IDLE_LOAD:
        notes.append(
            f"others used this machine at the same time (load average {record['load']} on {os.cpu_count()} cores): "
            "times are too long, but what took turns was disturbed alike"
        )
    retries = {row["case"]: row["allocation_retries"] for row in rows if row.get("allocation_retries")}
    notes += [
        f"{case}: memory ran short {count} times during the timed steps, some of which waited for the allocator"
        for case, count in retries.items()
    ]
    return notes


def cases_of(arguments: argparse.Namespace, device: torch.device) -> tuple[list[Case], Bench]:
    """What the arguments ask for. Raises ConfigError where that is nothing."""
    dtype = resolve_dtype(getattr(arguments, "dtype", "auto"), device)
    bench = _bench(arguments, device)
    cases = [case for case in CASES[arguments.part](arguments, bench, dtype) if _wanted(case, arguments)]
    if not cases:
        raise ConfigError(f"no case is left: --filter {' '.join(arguments.filter)}{_named(arguments)}")
    return cases, bench


def command(arguments: argparse.Namespace, case: Case) -> str:
    """What measures one case: the arguments that say how, and the case's name in place of those that say which."""
    words = ["python", "benchmarks/run.py", arguments.part]
    for name, value in vars(arguments).items():
        if name in NOT_REPEATED or value in (None, False, "auto"):
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += [str(part) for part in (value if isinstance(value, list | tuple) else [value])]
    if case.seconds > 60 * MINUTES:
        words += ["--minutes", f"{case.seconds / 60:.0f}"]
    return shlex.join([*words, "--case", case.key])


def log_path(out: Path | None) -> Path | None:
    """Where finished cases are remembered: report.cases.jsonl, for report.md and report.json alike."""
    if out is None:
        return None
    return out.with_name(f"{out.stem if out.suffix in ('.md', '.json') else out.name}.cases.jsonl")


def wrong_rows(rows: list[Row]) -> list[tuple[Row, str]]:
    """Of what is ours: bits that differ, saved bytes not as predicted, kernels far from fp64. sdpa is torch's."""
    wrong = []
    for row in rows:
        if row["contender"].startswith("sdpa"):
            continue
        if row.get("different"):
            wrong.append((row, f"{len(row['different'])} tensors differ from none's"))
        error = row.get("error")
        if error is not None and row["contender"] in OURS and not error < WRONG_ERROR:  # NaN is not less
            wrong.append((row, f"relative error {error:.1e} against fp64"))
        if row.get("same_bits") is False:
            wrong.append((row, "loss or gradients differ from the first setting's"))
        predicted, measured = row.get("saved_predicted"), row.get("saved_measured")
        if predicted is not None and measured is not None and predicted != measured:
            wrong.append((row, f"keeps {measured} bytes, and {predicted} were predicted"))
    return wrong


def _bench(arguments: argparse.Namespace, device: torch.device) -> Bench:
    on_cpu = int(device.type != "cuda")
    defaults = {**SECONDS, "headline": HEADLINE_SECONDS}.get(arguments.part, MODEL_SECONDS)
    rounds, seconds = ROUNDS[on_cpu], defaults[on_cpu]
    if getattr(arguments, "quick", False):
        rounds, seconds = QUICK_ROUNDS, QUICK_SECONDS
    rounds, seconds = arguments.rounds or rounds, arguments.seconds or seconds
    return Bench(device, rounds, seconds, lambda line: print(line, file=sys.stderr))


def _wanted(case: Case, arguments: argparse.Namespace) -> bool:
    if arguments.case and case.key not in arguments.case:
        return False
    return all(part in case.key for part in arguments.filter)


def _named(arguments: argparse.Namespace) -> str:
    return f" --case {shlex.join(arguments.case)}" if arguments.case else ""


def _plain(arguments: argparse.Namespace) -> dict[str, Any]:
    """As JSON can hold them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
