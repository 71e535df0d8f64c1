"""Disks that are full or read-only: a small tmpfs where it may be mounted, and a limit on a file's size everywhere."""

import resource
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def mounted(path, size_bytes):
    """A tmpfs of that size at `path`, which is made; skips where mounting is refused."""
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(path)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


def remount(path, mode):
    """mode: ro or rw; root may write where permission bits forbid it, but not there."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(path)], check=True)


@contextmanager
def file_size_limit(size_bytes):
    """No file of this process may grow beyond it: as a quota, the refusal comes in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
