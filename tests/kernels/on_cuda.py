"""What the tests on a real GPU share: inputs of their own in every run, and poisoned memory."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_inputs(record_property):
    """Seeds torch anew, and prints the seed, which pytest shows where a test fails."""
    seed = int.from_bytes(os.urandom(4), "little")
    record_property("seed", seed)
    print(f"inputs drawn with torch.manual_seed({seed})")
    torch.manual_seed(seed)


def poison(*tensors):
    """Leave NaN (-1 in a mask) in the memory that the allocator hands out next for tensors of these sizes."""
    blocks = [torch.full_like(t, -1 if t.dtype == torch.int8 else torch.nan) for t in tensors for _ in range(3)]
    torch.cuda.synchronize()
    del blocks
