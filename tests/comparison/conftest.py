"""A small comparison by the real command, once a session, and the flags that made it."""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megaselect.cli.main import main
from megaselect.comparison.result import read_comparison
from megaselect.data.indexed_dataset import IndexedDatasetWriter

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it: measurements

VOCABULARY = 128
STEPS, WARMUP_STEPS = 2, 1
BALLAST_BYTES = 2**30


@pytest.fixture(scope="session")
def dataset_prefix(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("data") / "tokens"
    with_words = IndexedDatasetWriter(prefix, VOCABULARY)
    for seed in range(4):
        with_words.add_document(np.random.default_rng(seed).integers(VOCABULARY, size=600).tolist())
    with_words.finish()
    return prefix


@pytest.fixture(scope="session")
def tiny_flags(dataset_prefix):
    """Of a run of two layers on random tokens, two micro-batches a step."""
    return [
        *("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4"),
        *("--model.seq-length", "24", "--model.vocab-size", str(VOCABULARY), "--data.prefix", str(dataset_prefix)),
        *("--training.micro-batch-size", "2", "--training.global-batch-size", "4", "--max-steps", "3"),
        *("--training.warmup-steps", "0", "--device", "cpu", "--wandb", "disabled"),
    ]


@pytest.fixture(scope="session")
def compared(tiny_flags, tmp_path_factory):
    """What `megaselect compare` said and wrote: none, which goes with it, and full."""
    out = tmp_path_factory.mktemp("compared")
    stdout, stderr = io.StringIO(), io.StringIO()
    flags = ["--settings", "full", "--steps", str(STEPS), "--warmup", str(WARMUP_STEPS), "--rounds", "1"]
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    ballast = torch.ones(BALLAST_BYTES, dtype=torch.int8)  # of this process, and none of its children's memory
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            code = main(["compare", *tiny_flags, *flags, "--out", str(out), "--json"])
    finally:
        del ballast
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    assert code == 0, stderr.getvalue()
    return SimpleNamespace(
        out=out,
        printed=json.loads(stdout.getvalue()),
        progress=stderr.getvalue(),
        result=read_comparison(out / "compare.json"),
    )
