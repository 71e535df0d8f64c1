"""Packages that the machine lacks, from wheels that were carried there: `make gpu-wheels` makes the folder."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.child import ROOT
from benchmarks.packages import missing

WHEELS = ROOT / "build" / "gpu-wheels"
MISSING = "MISSING"
NEEDED = ("pydantic", "rich", "safetensors", "sentencepiece", "yaml", "zstandard")  # of what is imported


def install(target: Path, wheels: Path = WHEELS, seconds: float = 60) -> str:
    """Put the wheels into `target`, on this process's path and its children's; what came of it, in words."""
    found = sorted(wheels.glob("*.whl"))
    said = f"no wheels in {wheels}"
    if found:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        command += ["--no-deps", "--no-compile", "--no-cache-dir", "--target", str(target), *map(str, found)]
        said = _run(command, seconds) or f"{len(found)} carried wheels"
        sys.path.insert(1, str(target))  # behind the tree's own root
        importlib.invalidate_caches()
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))
    lacking = missing(NEEDED)
    return f"{said}; {MISSING}: {', '.join(lacking)}" if lacking else said  # wheels may not fit, and not be missed


def _run(command: list[str], seconds: float) -> str:
    """Why it failed, in one line, or nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"pip failed: {type(error).__name__}"
    lines = done.stderr.strip().splitlines() or ["no reason given"]
    return f"pip failed: {lines[-1]}" if done.returncode else ""
