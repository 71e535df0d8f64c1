"""Which implementation of a fused op runs: the Triton kernel or its plain-torch fallback."""

from __future__ import annotations

import importlib.util
import os

import torch

BACKENDS = ("auto", "triton", "torch")


def resolve_backend(requested: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """ "triton" or "torch". `auto` takes Triton on a GPU that has it and the torch fallback elsewhere.

    dtype: of what the op computes, if known. Raises ValueError where Triton is asked for and cannot run (the launch
    itself would only say "0 active drivers"), or would run wrongly: Triton's interpreter computes on bf16's raw bits.
    """
    if requested not in BACKENDS:
        raise ValueError(f"kernel backend {requested!r} is not one of {', '.join(BACKENDS)}")
    if requested == "torch" or (requested == "auto" and device.type != "cuda"):
        return "torch"
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
