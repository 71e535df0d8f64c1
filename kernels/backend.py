"""Which implementation of a fused op runs: the Triton kernel, what Numba compiles, or the plain-torch fallback."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

BACKENDS = ("auto", "triton", "numba", "torch")
NUMBA_DTYPES = (torch.float32, torch.bfloat16)


def resolve_backend(requested: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """ "triton", "numba" or "torch". `auto` takes Triton on a GPU that has it, Numba on a CPU that has it, else torch.

    Of Numba are dropout masks, and softmax in fp32 and bf16; the fallback takes other dtypes and ops.

    dtype: of what the op computes, if known. Raises ValueError where Triton is asked for and cannot run (the launch
    itself would only say "0 active drivers"), or would run wrongly: Triton's interpreter computes on bf16's raw bits.
    """
    if requested not in BACKENDS:
        raise ValueError(f"kernel backend {requested!r} is not one of {', '.join(BACKENDS)}")
    if requested == "torch":
        return "torch"
    if requested == "numba" or (requested == "auto" and device.type != "cuda"):
        return _numba_or_torch(requested, device, dtype)
    if importlib.util.find_spec("triton") is None:
        raise ValueError("the Triton kernels need the package triton: install it, or use --kernel-backend torch")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"Triton kernels do not run on device {device.type}: use --kernel-backend torch or auto "
            "(or set TRITON_INTERPRET=1 to run them slowly in Triton's interpreter, in fp32 or fp16)"
        )
    if os.environ.get("TRITON_INTERPRET") == "1" and dtype == torch.bfloat16:
        raise ValueError(
            "Triton's interpreter (TRITON_INTERPRET=1) computes wrongly in bf16: use --dtype fp32 or fp16, or "
            "--kernel-backend torch"
        )
    return "triton"


def _numba_or_torch(requested: str, device: torch.device, dtype: torch.dtype | None) -> str:
    if device.type == "cpu" and has_numba():
        return "numba" if dtype is None or dtype in NUMBA_DTYPES else "torch"
    if requested == "auto":
        return "torch"
    if device.type != "cpu":
        raise ValueError(f"Numba's kernels do not run on device {device.type}: use --kernel-backend auto or torch")
    raise ValueError("Numba's kernels need the package numba: install it, or use --kernel-backend auto or torch")


def has_numba() -> bool:
    """Whether it can be imported."""
    return numba_version() is not None


@functools.cache
def numba_version() -> str | None:
    """None where it cannot be imported, as it refuses a NumPy that is newer than itself, or is told not to compile."""
    try:
        import numba
    except ImportError:
        return None
    return None if getattr(numba.config, "DISABLE_JIT", 0) else numba.__version__
