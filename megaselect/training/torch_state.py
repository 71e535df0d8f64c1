"""What a run changes in torch for the whole process, and how a caller gets it back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megaselect.config import TrainingConfig

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def set_determinism(deterministic: bool) -> None:
    """Refuse operations whose bits vary from run to run, or allow them."""
    if deterministic:
        os.environ.setdefault(_CUBLAS_WORKSPACE, ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def own_torch_state(training: TrainingConfig, on_gpu: bool) -> Iterator[None]:
    """Inside, torch is as in a new process, seeded and deterministic as the config says; afterwards as it was before.

    That is its random states (of GPUs, where the run is on one or CUDA was in use before), determinism, default dtype
    and grad mode.
    """
    devices = range(torch.cuda.device_count()) if on_gpu or torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices, device_type="cuda"), _settings_restored(), torch.enable_grad():
        torch.manual_seed(training.seed)  # for a user's own modules; nothing of ours draws from it
        torch.set_default_dtype(torch.float32)  # the initial weights are drawn in it
        set_determinism(training.deterministic)
        yield


@contextmanager
def _settings_restored() -> Iterator[None]:
    dtype, workspace = torch.get_default_dtype(), os.environ.get(_CUBLAS_WORKSPACE)
    refused = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(refused, warn_only=warned)
        torch.set_default_dtype(dtype)
        if workspace is None:
            os.environ.pop(_CUBLAS_WORKSPACE, None)
