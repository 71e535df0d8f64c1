"""Ranks for the tests of this folder, and data for whole runs."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from megaselect.data.indexed_dataset import IndexedDatasetWriter

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
from launched_runs import LaunchServer
from rank_pool import RankPool
from whole_runs import VOCABULARY, SmallRuns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def pool():
    """Four processes that are ranks of one job after another."""
    with RankPool() as pool:
        yield pool


@pytest.fixture(scope="session")
def rank_environment():
    """This process's environment, with one thread and nothing that would tell wandb of a key or a mode."""
    names = (name for name in os.environ if not name.startswith("WANDB_"))
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {name: os.environ[name] for name in names} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}


@pytest.fixture(scope="session")
def launcher(rank_environment):
    """torchrun's part, played by a process that has imported the trainer."""
    with LaunchServer(rank_environment) as server:
        yield server


@pytest.fixture(scope="session")
def write_tokens():
    """write_tokens(prefix, seed) writes a dataset of 4,000 random tokens."""

    def write(prefix, seed):
        writer = IndexedDatasetWriter(prefix, VOCABULARY)
        writer.add_document(np.random.default_rng(seed).integers(0, VOCABULARY, 4000).tolist())
        writer.finish()
        return prefix

    return write


@pytest.fixture(scope="session")
def random_tokens(write_tokens, tmp_path_factory):
    """Prefix of one."""
    return write_tokens(tmp_path_factory.mktemp("data") / "tokens", seed=0)


@pytest.fixture(scope="session")
def run_arguments(random_tokens):
    """A small run, with the command's name."""
    return (
        "train",
        *("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4"),
        *("--model.seq-length", "16", "--model.vocab-size", str(VOCABULARY), "--data.prefix", str(random_tokens)),
        *("--training.micro-batch-size", "1", "--training.global-batch-size", "12", "--training.warmup-steps", "2"),
        *("--training.eval-interval", "3", "--training.eval-samples", "7", "--training.sample-tokens", "0"),
        *("--training.schedule", "constant", "--wandb", "disabled"),
    )


@pytest.fixture(scope="session")
def small_runs(pool, random_tokens):
    """Whole runs of `megaselect train` on ranks of the pool."""
    return SmallRuns(pool, random_tokens)
