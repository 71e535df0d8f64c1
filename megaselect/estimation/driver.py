"""The first GPU as its driver describes it, without the seconds that importing torch takes."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

NAME_BYTES = 256


class DriverGpu(NamedTuple):
    """A device name such as `NVIDIA H100 80GB HBM3`, and all of its memory."""

    name: str
    memory_bytes: int


def first_gpu() -> DriverGpu | None:
    """Device 0 of CUDA_VISIBLE_DEVICES; None where there is no NVIDIA driver or no device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(NAME_BYTES)
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, NAME_BYTES, device),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
    )
    if any(call() != 0 for call in calls):
        return None
    return DriverGpu(name.value.decode(errors="replace"), memory.value)
