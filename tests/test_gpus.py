"""GPUs by the names that people and drivers give them, and bytes as people write them."""

import re

import pytest

from megaselect.errors import ConfigError, DeviceError
from megaselect.gpus import GPUS, by_marketing_name, find_gpu
from megaselect.units import parse_size, size, size_notes

GIB = 2**30
# As drivers spell them.
DRIVER_NAMES = {
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H100 PCIe": "h100-pcie-80gb",
    "NVIDIA H100 NVL": "h100-nvl-94gb",
    "NVIDIA H200": "h200-141gb",
    "NVIDIA B200": "b200-180gb",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-80gb",
    "NVIDIA L40S": "l40s-48gb",
    "NVIDIA L4": "l4-24gb",
    "NVIDIA A10G": "a10g-24gb",
    "NVIDIA RTX A6000": "a6000-48gb",
    "NVIDIA GeForce RTX 5090": "rtx5090-32gb",
    "NVIDIA GeForce RTX 4090": "rtx4090-24gb",
    "NVIDIA GeForce RTX 3090": "rtx3090-24gb",
    "Tesla T4": "t4-16gb",
    "Tesla V100-SXM2-32GB": "v100-32gb",
    "Tesla V100-SXM2-16GB": "v100-16gb",
}
# Other devices whose names hold a listed one's, or most of it: no figure is better than a wrong one.
UNKNOWN = [
    *("NVIDIA L40", "NVIDIA A10", "NVIDIA GH200 480GB", "NVIDIA H200 NVL", "NVIDIA RTX 6000 Ada Generation"),
    *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 D", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
    *("Tesla V100-PCIE-16GB", "Tesla V100S-PCIE-32GB", "NVIDIA GeForce RTX 3090 Ti", "AMD Instinct MI300X"),
]


@pytest.mark.parametrize("name", DRIVER_NAMES)
def test_a_driver_s_name(name):
    assert by_marketing_name(name) is GPUS[DRIVER_NAMES[name]]


def test_every_gpu_of_the_table_is_found_by_a_driver_s_name():
    assert set(DRIVER_NAMES.values()) == set(GPUS)


@pytest.mark.parametrize("name", UNKNOWN)
def test_no_figures_for_a_device_that_is_not_in_the_table(name):
    assert by_marketing_name(name) is None


@pytest.mark.parametrize("name", GPUS)
def test_figures_are_of_the_size_that_the_name_says(name):
    """Makers count 10⁹ or 2³⁰ bytes; the driver keeps up to 8 % for itself and for error correction."""
    gpu, gigabytes = GPUS[name], int(re.search(r"-(\d+)gb$", name)[1])
    assert 0.92 * gigabytes * GIB < gpu.memory_bytes <= 1.03 * gigabytes * GIB
    assert 50e12 < gpu.flops_16_bit < 3e15
    assert 50 < gpu.flops_16_bit / gpu.bytes_per_s < 500  # FLOPs a byte of memory traffic


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("h100-80gb", "h100-80gb"),
        ("H100-80GB", "h100-80gb"),
        ("h100-80", "h100-80gb"),
        ("h200", "h200-141gb"),
        ("RTX4090", "rtx4090-24gb"),
    ],
)
def test_a_name_of_the_table(text, name):
    assert find_gpu(text) is GPUS[name]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a100", "did you mean a100-40gb or a100-80gb?"),
        ("h100", "did you mean h100-pcie-80gb or h100-nvl-94gb or h100-80gb?"),
        ("h10-80gb", "did you mean h100-80gb or "),
        ("gameboy", f"it has {', '.join(GPUS)}."),
    ],
)
def test_a_name_that_is_not_one(text, meant):
    with pytest.raises(DeviceError) as refused:
        find_gpu(text)
    assert str(refused.value).startswith(f"--device {text}: no such GPU in the table; {meant}")
    assert str(refused.value).endswith("For another one name the nearest, with its own --memory")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GiB", 24 * GIB),
        ("24 gib", 24 * GIB),
        (" 512MiB ", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("16GB", 16 * 10**9),
        ("1.001MB", 1_001_000),  # which in floating point is a byte less
        ("0.5 MB", 500_000),
        ("24G", 24 * GIB),
        ("24g", 24 * GIB),
        ("24Gi", 24 * GIB),
        ("1TiB", 1024 * GIB),
        ("1.5T", 1536 * GIB),
        ("2TB", 2 * 10**12),
        ("512M", 512 * 2**20),
        ("9000KiB", 9000 * 2**10),
        ("9000k", 9000 * 2**10),
        ("3KB", 3000),
    ],
)
def test_an_amount_of_memory(text, count):
    assert parse_size(text, "--memory") == count


@pytest.mark.parametrize(
    "text",
    ["12parsecs", "24", "GiB", "", "0GiB", "-1GiB", "1e3GiB", "24GiB extra", "nan GiB", "24P", "٣GiB", "0.0001K"],
)
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(ConfigError) as refused:
        parse_size(text, "--memory")
    assert str(refused.value) == (
        f"--memory {text}: must be a size such as 24GiB; the units are KiB to TiB, K to T (the same), KB to TB"
    )


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("24GiB", []),
        (" 24 gib ", []),
        ("24G", ["note: --memory 24G is read as 25,769,803,776 bytes, which are 24.00 GiB"]),
        ("24GB", ["note: --memory 24GB is read as 24,000,000,000 bytes, which are 22.35 GiB"]),
    ],
)
def test_a_unit_that_may_mean_two_things_is_said(text, notes):
    assert size_notes(text, "--memory") == notes


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (24 * GIB, "24.00 GiB"),
        (GIB - 1, "1024.00 MiB"),
        (3 * 2**19, "1.50 MiB"),
        (2**18, "256.00 KiB"),
    ],
)
def test_an_amount_is_shown(count, text):
    assert size(count) == text
