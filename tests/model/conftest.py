import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it: tiny_models


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Threads only wait for each other over tensors as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
