"""Which code a figure comes from. Needs nothing but Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def source_commit() -> str | None:
    """The commit of the source tree, with `-dirty` where files differ from it; None without git or outside a tree."""
    if not (_ROOT / ".git").exists():  # installed: git would answer for whatever tree the environment lies in
        return None
    commit = output_of("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
    changed = commit and output_of("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def output_of(*command: str) -> str | None:
    """What a command prints, stripped; None where it fails, is not there, or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
