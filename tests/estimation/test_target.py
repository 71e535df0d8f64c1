"""The device of an estimate, by name, and its memory."""

import pytest

from megaselect.errors import ConfigError, DeviceError
from megaselect.estimation.driver import first_gpu
from megaselect.estimation.target import resolve_target
from megaselect.gpus import GPUS
from megaselect.host_memory import available_bytes


def test_a_named_gpu_has_the_share_of_its_memory_that_tensors_can_use():
    target = resolve_target("h100-80gb", None, "auto")
    assert (target.on_gpu, target.dtype, target.element_bytes) == (True, "bf16", 2)
    assert target.usable_bytes == int(0.95 * GPUS["h100-80gb"].memory_bytes)
    assert resolve_target("H200", None, "auto").name == "H200"


def test_memory_that_is_given_is_taken_as_it_is():
    for device in ("h100-80gb", "cpu"):
        target = resolve_target(device, "24GiB", "fp16")
        assert (target.usable_bytes, target.memory_note, target.dtype) == (24 * 2**30, "--memory", "fp16")


def test_a_cpu_has_what_is_available_here():
    target = resolve_target("cpu", None, "auto")
    assert (target.on_gpu, target.dtype) == (False, "fp32")
    assert 0.5 * available_bytes() < target.usable_bytes < 2 * available_bytes()  # which others change meanwhile


@pytest.mark.parametrize(
    ("device", "memory", "error", "message"),
    [
        ("h10", None, DeviceError, "did you mean h100-pcie-80gb or h100-nvl-94gb or h100-80gb?"),
        ("a100", None, DeviceError, "did you mean a100-40gb or a100-80gb?"),
        ("tpu", None, DeviceError, "no such GPU in the table; it has h100-pcie-80gb, "),
        ("cpu", "12parsecs", ConfigError, "--memory 12parsecs: must be a size such as 24GiB"),
    ],
)
def test_mistakes_name_what_was_meant(device, memory, error, message):
    with pytest.raises(error) as caught:
        resolve_target(device, memory, "auto")
    assert message in str(caught.value)


@pytest.mark.skipif(first_gpu() is not None, reason="an NVIDIA driver is here: --device cuda is no mistake")
def test_cuda_without_a_driver_is_refused_and_auto_is_the_cpu():
    with pytest.raises(DeviceError, match="--device cuda: no NVIDIA driver or no GPU is here"):
        resolve_target("cuda", None, "auto")
    assert resolve_target("auto", None, "auto").name == "cpu"


@pytest.mark.cuda
def test_the_driver_names_the_gpu_as_torch_does():
    import torch

    gpu = first_gpu()
    assert gpu.name == torch.cuda.get_device_name(0)
    assert gpu.memory_bytes >= torch.cuda.get_device_properties(0).total_memory
