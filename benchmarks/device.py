"""The machine that figures come from, and how its memory is watched."""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import os
import platform
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

from benchmarks.sources import sources_digest
from megaselect.comparison.provenance import output_of, source_commit
from megaselect.devices import device_name, synchronise

SMI_FIELDS = ("driver_version", "power.limit", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu")


def environment(device: torch.device, commit: str | None = None) -> dict[str, Any]:
    """What a figure depends on besides the arguments: device, versions, code, date (UTC) and command line.

    load: processes that wanted to run, on average over the minute before.
    """
    return {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "versions": _versions(),
        "commit": commit or source_commit(),
        "sources": sources_digest(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "command": _threads() + shlex.join(["python", *sys.argv]),
    }


def fingerprint(record: dict[str, Any]) -> dict[str, Any]:
    """The part of the environment that figures must share to stand in one report."""
    versions = record["versions"]
    return {
        "device": record["device"],
        "torch": versions["torch"],
        "triton": versions["triton"],
        "sources": record["sources"],
    }


def _threads() -> str:
    """The variable that sets torch's threads, as a shell takes it, where it is set."""
    count = os.environ.get("OMP_NUM_THREADS")
    return f"OMP_NUM_THREADS={shlex.quote(count)} " if count else ""


def describe(record: dict[str, Any]) -> list[str]:
    """The environment in a few lines of at most 80 columns."""
    lines = [f"{record['device']} ({record['cpu']}, {os.cpu_count()} cores, load {record.get('load')} before)"]
    if record["gpu"]:
        lines.append(", ".join(f"{name} {value}" for name, value in record["gpu"].items() if name != "memory_bytes"))
    lines.append(", ".join(f"{name} {version}" for name, version in record["versions"].items() if version))
    lines.append(f"{record['date']}, commit {record['commit'] or 'unknown'}, sources {record['sources']}")
    return [part for line in lines for part in textwrap.wrap(line, 80)]


def works(device: torch.device) -> bool:
    """A GPU that has run into a bad address answers every later call of the process with an error."""
    try:
        synchronise(device)
    except RuntimeError:
        return False
    return True


def free_memory() -> None:
    """Give a GPU back what no tensor uses any more. On a CPU nothing competes for it, and a collection takes 0.1 s."""
    if torch.cuda.is_available():
        gc.collect()
        with contextlib.suppress(RuntimeError):  # of a GPU that has failed; whoever uses it next will hear of it
            torch.cuda.empty_cache()


def allocated_bytes(device: torch.device) -> int | None:
    """Bytes of live tensors; None on a CPU, where nothing counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Begin a new highest value of allocated bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes of live tensors since reset_peak; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def allocation_retries(device: torch.device) -> int | None:
    """How often the allocator had to give memory back before it got more: each costs time that is not the model's."""
    return torch.cuda.memory_stats(device).get("num_alloc_retries", 0) if device.type == "cuda" else None


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("triton", "numpy", "transformers", "megatron-core", "torch_remat", "ckptplan"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {**versions, "cudnn": str(cudnn) if cudnn else None}


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {"memory_bytes": properties.total_memory, "SMs": properties.multi_processor_count}
    answer = output_of("nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader", "-i", "0")
    if answer:
        facts |= dict(zip(SMI_FIELDS, answer.split(", "), strict=False))
    return facts


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
