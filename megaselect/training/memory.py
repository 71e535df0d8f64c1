"""What memory is in use at the end of a step."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch

from megaselect.training.metrics import peak_bytes


def memory_metrics(device: torch.device) -> dict[str, int | None]:
    """peak_bytes (see metrics.peak_bytes), and what is held now: allocated_bytes and reserved_bytes of the GPU's
    allocator (None on a CPU), resident_bytes of the process.

    allocated: tensors. reserved: what the allocator took from the driver. resident: None where the system does not say.
    """
    on_gpu, resident = device.type == "cuda", _resident_bytes()
    peak = peak_bytes(device)
    return {
        # Linux counts pages in batches, and the peak may be behind what is resident by some of them.
        "peak_bytes": peak if on_gpu else max(peak, resident or 0),
        "allocated_bytes": torch.cuda.memory_allocated(device) if on_gpu else None,
        "reserved_bytes": torch.cuda.memory_reserved(device) if on_gpu else None,
        "resident_bytes": resident,
    }


def _resident_bytes() -> int | None:
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None
