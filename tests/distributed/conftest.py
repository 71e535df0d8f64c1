"""Ranks for the tests of this folder."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
from rank_pool import RankPool


@pytest.fixture(scope="session")
def pool():
    """Four processes that are ranks of one job after another."""
    with RankPool() as pool:
        yield pool
