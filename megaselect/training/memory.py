"""What memory is in use, and the most that was."""

from __future__ import annotations

import torch

from megaselect.host_memory import peak_resident_bytes, resident_bytes


def reset_peak_bytes(device: torch.device) -> None:
    """Start a new measurement of `peak_bytes`; on a CPU the process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Most bytes of tensors since the reset on a GPU; on a CPU the process's largest resident size so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


def memory_metrics(device: torch.device) -> dict[str, int | None]:
    """peak_bytes (see peak_bytes), and what is held now: allocated_bytes and reserved_bytes of the GPU's
    allocator (None on a CPU), resident_bytes of the process.

    allocated: tensors. reserved: what the allocator took from the driver. resident: None where the system does not say.
    """
    on_gpu, resident = device.type == "cuda", resident_bytes()
    peak = peak_bytes(device)
    return {
        # Linux counts pages in batches, and the peak may be behind what is resident by some of them.
        "peak_bytes": peak if on_gpu else max(peak, resident or 0),
        "allocated_bytes": torch.cuda.memory_allocated(device) if on_gpu else None,
        "reserved_bytes": torch.cuda.memory_reserved(device) if on_gpu else None,
        "resident_bytes": resident,
    }
