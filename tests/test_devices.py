"""What a device is called, and what tells that memory is short: by the words of whoever ran out of it."""

import pytest
import torch

from megaselect.devices import device_name, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("std::bad_alloc"),  # seen with torch 2.15.0 under a limit on a process's memory
    ],
)
def test_errors_that_say_so(error):
    assert is_out_of_memory(error)


def test_errors_of_other_kinds_and_of_torch_itself():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)  # 281 TB: more than an address space
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(("threads", "name"), [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")])
def test_a_cpu_is_named_with_its_threads(threads, name):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert device_name(torch.device("cpu")) == name
    finally:
        torch.set_num_threads(before)
