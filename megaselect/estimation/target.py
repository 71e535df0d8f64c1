"""The device that an estimate is for: its memory, its dtype and the speed that it is assumed to reach."""

from __future__ import annotations

from dataclasses import dataclass

from megaselect.errors import DeviceError
from megaselect.estimation.driver import first_gpu
from megaselect.gpus import GPU_SHARE, Gpu, by_marketing_name, find_gpu
from megaselect.host_memory import available_bytes
from megaselect.prediction.assumed_time import DeviceSpeed, cpu_speed, gpu_speed
from megaselect.units import parse_size

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Target:
    """usable_bytes: what a step may hold; memory_note: where that comes from. speed: None where it is not known."""

    name: str
    on_gpu: bool
    dtype: str
    usable_bytes: int
    memory_note: str
    speed: DeviceSpeed | None

    @property
    def element_bytes(self) -> int:
        """Of an activation."""
        return ELEMENT_BYTES[self.dtype]


def resolve_target(device: str, memory: str | None, dtype: str) -> Target:
    """device: auto, cpu, cuda, or a GPU's name in megaselect/gpus.py. memory: what --memory says. dtype: or `auto`.

    Raises DeviceError for a GPU that is neither here nor known, ConfigError for an unreadable amount.
    """
    budget = parse_size(memory, "--memory") if memory else None
    if device == "cpu" or (device == "auto" and first_gpu() is None):
        available = available_bytes()
        note = "--memory" if budget else "memory that is available here"
        return Target("cpu", False, "fp32" if dtype == "auto" else dtype, budget or available, note, cpu_speed())
    name, total, gpu = _gpu_of(device)
    chosen = "bf16" if dtype == "auto" else dtype
    speed = gpu_speed(gpu, ELEMENT_BYTES[chosen]) if gpu else None
    note = "--memory" if budget else f"{GPU_SHARE:.0%} of its {total / 2**30:.1f} GiB"
    return Target(name, True, chosen, budget or int(GPU_SHARE * total), note, speed)


def _gpu_of(device: str) -> tuple[str, int, Gpu | None]:
    if device in ("auto", "cuda"):
        here = first_gpu()
        if here is None:
            raise DeviceError("--device cuda: no NVIDIA driver or no GPU is here; name one, as in --device h100-80gb")
        return here.name, here.memory_bytes, by_marketing_name(here.name)
    gpu = find_gpu(device)
    return device, gpu.memory_bytes, gpu
