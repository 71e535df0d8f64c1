"""The device and dtype of a run."""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from megaselect.errors import DeviceError
from megaselect.gpus import GPU_SHARE, by_marketing_name
from megaselect.host_memory import available_bytes
from megaselect.kernels.backend import resolve_backend
from megaselect.kernels.limits import refused_attention

if TYPE_CHECKING:
    from megaselect.config import ModelConfig, TrainingConfig

_OUT_OF_MEMORY = (
    *("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "can't start new thread"),
    "std::bad_alloc",  # C++ inside torch, as a RuntimeError
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(requested: str) -> torch.device:
    """The device; `auto` takes the GPU where there is one, of several ranks on a machine each its own.

    Raises DeviceError for a GPU that is not there.
    """
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    if requested.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {requested} was asked for and torch sees no GPU: use --device cpu, or --device auto")
    return _own_gpu() if requested == "cuda" else torch.device(requested)


def _own_gpu() -> torch.device:
    """By the rank's number on its machine, which torchrun tells."""
    number = os.environ.get("LOCAL_RANK", "")
    if not number.isdecimal() or int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return torch.device("cuda")
    if int(number) >= torch.cuda.device_count():
        raise DeviceError(
            f"rank {os.environ.get('RANK')} is number {number} on its machine (from 0), and torch sees "
            f"{torch.cuda.device_count()} GPUs there: start as many ranks a machine as it has GPUs"
        )
    torch.cuda.set_device(int(number))
    return torch.device("cuda", int(number))


def resolve_dtype(requested: str, device: torch.device) -> torch.dtype:
    """The compute dtype; `auto` is bf16 on a GPU and fp32 on a CPU."""
    if requested == "auto":
        requested = "bf16" if device.type == "cuda" else "fp32"
    return DTYPES[requested]


@dataclass(frozen=True)
class Placement:
    """Where a run computes, and in which dtype: resolved once from its settings, and handed on."""

    device: torch.device
    dtype: torch.dtype

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def element_bytes(self) -> int:
        """Of a weight or an activation."""
        return self.dtype.itemsize

    @property
    def device_name(self) -> str:
        """See device_name."""
        return device_name(self.device)


def resolve_placement(training: TrainingConfig) -> Placement:
    """What `auto` comes to here. Raises DeviceError for a GPU that is not there."""
    device = resolve_device(training.device)
    return Placement(device, resolve_dtype(training.dtype, device))


def check_kernels(settings: ModelConfig, placement: Placement) -> None:
    """Raises DeviceError where the kernel backend cannot run on the device, in the dtype or with this head size."""
    try:
        backend = resolve_backend(settings.kernel_backend, placement.device, placement.dtype)
    except ValueError as error:
        raise DeviceError(str(error)) from None
    refusal = refused_attention(settings.attention, backend, settings.hidden_size, settings.num_attention_heads)
    if refusal:
        raise DeviceError(refusal)


def load_kernels(settings: ModelConfig, placement: Placement) -> None:
    """What Numba has yet to compile or to load, which would else count as time of the first step."""
    if resolve_backend(settings.kernel_backend, placement.device, placement.dtype) == "numba":
        from megaselect.kernels import softmax_dropout_numba

        softmax_dropout_numba.load(placement.dtype)


def missing_for_compile(device: torch.device) -> str | None:
    """What torch.compile would miss on this device, and how to get it; None where nothing is missing."""
    if device.type != "cpu":
        return None
    if not any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++")):
        return "a C++ compiler: install one (on Debian and Ubuntu: apt-get install g++), or name it in CXX"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers: install them (on Debian and Ubuntu: apt-get install python3-dev)"
    return None


def check_compile(device: torch.device) -> None:
    """Raises DeviceError where layers cannot be compiled on this device."""
    missing = missing_for_compile(device)
    if missing:
        raise DeviceError(f"--compile on a CPU needs {missing}; or leave --compile out")


def device_name(device: torch.device) -> str:
    """The GPU's marketing name, or `cpu` with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} thread{'' if threads == 1 else 's'}"


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Dense matrix FLOP/s of the device in a 16-bit dtype, or None where no data sheet is on file."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return None
    gpu = by_marketing_name(torch.cuda.get_device_name(device))
    return gpu.flops_16_bit if gpu else None


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """What this process may hold: on a GPU what is free and what it has taken already, less a share for what torch does
    not count; on a CPU the memory that is available.
    """
    if device.type != "cuda":
        return available_bytes()
    return int(GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is short, on a GPU (cuBLAS and Triton have words of their own) or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)
