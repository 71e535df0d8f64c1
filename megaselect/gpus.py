"""GPUs by name: memory, peak arithmetic and memory bandwidth by NVIDIA's data sheets. No torch."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import NamedTuple

from megaselect.errors import DeviceError

MIB_BYTES = 2**20
# Of a GPU's memory. The rest is the driver's context, the allocator's rounding and the matrix libraries' workspaces.
GPU_SHARE = 0.95


class Gpu(NamedTuple):
    """marketing_name: a pattern that torch's device name holds. memory_bytes: about what the driver shows as its total.
    flops_16_bit: dense matrix FLOP/s in bf16 (V100, T4: fp16).
    """

    marketing_name: str
    memory_bytes: int
    flops_16_bit: float
    bytes_per_s: float


# The first match by marketing name counts, so the longer names come first. A device that is not listed has no MFU: a
# guess would be a wrong figure with two decimals.
GPUS = {
    "h100-pcie-80gb": Gpu("H100 PCIe", 81_559 * MIB_BYTES, 756e12, 2.0e12),
    "h100-nvl-94gb": Gpu("H100 NVL", 95_830 * MIB_BYTES, 835e12, 3.9e12),
    "h100-80gb": Gpu("H100", 81_559 * MIB_BYTES, 989e12, 3.35e12),
    "h200-141gb": Gpu("H200", 143_771 * MIB_BYTES, 989e12, 4.8e12),
    "b200-180gb": Gpu("B200", 183_359 * MIB_BYTES, 2250e12, 8.0e12),
    "a100-40gb": Gpu(r"A100-\w+-40GB", 40_960 * MIB_BYTES, 312e12, 1.555e12),
    "a100-80gb": Gpu("A100", 81_920 * MIB_BYTES, 312e12, 2.039e12),
    "l40s-48gb": Gpu("L40S", 46_068 * MIB_BYTES, 362e12, 0.864e12),
    "l4-24gb": Gpu("L4", 23_034 * MIB_BYTES, 121e12, 0.3e12),
    "a10g-24gb": Gpu("A10G", 23_028 * MIB_BYTES, 70e12, 0.6e12),
    "a6000-48gb": Gpu("RTX A6000", 49_140 * MIB_BYTES, 155e12, 0.768e12),
    "rtx5090-32gb": Gpu("RTX 5090", 32_607 * MIB_BYTES, 210e12, 1.792e12),
    "rtx4090-24gb": Gpu("RTX 4090", 24_564 * MIB_BYTES, 165e12, 1.008e12),
    "rtx3090-24gb": Gpu("RTX 3090", 24_268 * MIB_BYTES, 71e12, 0.936e12),
    "t4-16gb": Gpu("T4", 15_109 * MIB_BYTES, 65e12, 0.32e12),
    "v100-32gb": Gpu(r"V100-\w+-32GB", 32_510 * MIB_BYTES, 125e12, 0.9e12),
    "v100-16gb": Gpu("V100", 16_160 * MIB_BYTES, 125e12, 0.9e12),
}

# Names that contain a listed one and mean another device, or a part of one, with less arithmetic.
_OTHERS = r"Laptop|\bMIG\b|H200 NVL|V100-(PCIE|FHHL)|RTX [345]090 (D|Ti)\b"


def find_gpu(name: str) -> Gpu:
    """By its name in the table, or by the only one that begins with it (`h200`). Raises DeviceError."""
    wanted = name.lower()
    beginning = [known for known in GPUS if known.startswith(wanted)]
    if wanted in GPUS or len(beginning) == 1:
        return GPUS[wanted if wanted in GPUS else beginning[0]]
    near = beginning or get_close_matches(wanted, GPUS, n=3)
    meant = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(GPUS)}."
    raise DeviceError(
        f"--device {name}: no such GPU in the table; {meant} For another one name the nearest, with its own --memory"
    )


def by_marketing_name(name: str) -> Gpu | None:
    """The GPU that torch or the driver calls `name`, None where no data sheet is on file."""
    if re.search(_OTHERS, name):
        return None
    return next((gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.marketing_name}\b", name)), None)
