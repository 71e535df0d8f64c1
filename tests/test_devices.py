"""What tells that memory is short: by the words of whoever ran out of it."""

import pytest
import torch

from megaselect.devices import is_out_of_memory


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
