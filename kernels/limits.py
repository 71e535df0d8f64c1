"""What the kernels cannot run, said once for training and for estimates. No torch."""

from __future__ import annotations

MAX_FUSED_HEAD_SIZE = 128  # of the Triton kernels; the torch fallback takes any


def refused_attention(attention: str, backend: str, hidden_size: int, heads: int) -> str | None:
    """Why attention "fused" cannot run on `backend` ("triton" or "torch"), with the remedy; None where it can."""
    head_size = hidden_size // heads
    if attention != "fused" or backend != "triton" or head_size <= MAX_FUSED_HEAD_SIZE:
        return None
    return (
        f"attention fused takes head sizes to {MAX_FUSED_HEAD_SIZE} in its Triton kernels, and hidden_size "
        f"{hidden_size} / {heads} heads is {head_size}: use more heads, or --attention unfused"
    )
