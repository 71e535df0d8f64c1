import dataclasses
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import megaselect
from megaselect.training.events import RunHeader, RunSummary, StoredReport

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it: wandb_records

ROOT = Path(megaselect.__file__).parents[1]
LAYER_BYTES = 2_411_725  # 2.30 MiB

HEADER = RunHeader(
    config_name="configs/tiny.yaml",
    device="cpu, 2 threads",
    dtype="float32",
    model="4 layers, hidden 192, 6 heads, sequence 128, vocabulary 4096",
    parameters=2_587_392,
    attention="unfused",
    recompute="selective: softmax, dropout",
    data="default corpus, 1,115,394 tokens",
    run_dir="runs/tiny",
    max_steps=20,
    first_step=0,
    config={
        "model": {"num_layers": 4, "ffn_hidden_size": None, "attention": "unfused"},
        "recompute": {"mode": "selective", "modules": ["softmax", "dropout"]},
        "training": {"lr": 3e-3},
    },
    notes=["dropout_p 0.1 is 0.1016 here: probabilities are multiples of 1/256"],
)
REPORT = StoredReport(
    predicted={f"layers.{layer}": LAYER_BYTES for layer in range(4)},
    measured={f"layers.{layer}": LAYER_BYTES for layer in range(4)},
    predicted_total=4 * LAYER_BYTES + 1000,
    measured_total=4 * LAYER_BYTES + 1000,
    alternatives={
        "none": 3_722_445,
        "softmax dropout": LAYER_BYTES,
        "core_attn dropout": 1_226_833,
        "all": 1_029_841,
        "full": 196_608,
    },
)
SUMMARY = RunSummary(
    steps=20,
    tokens=20_480,
    seconds=64.6,
    final_loss=6.5,
    valid_loss=6.75,
    best_valid_loss=6.25,
    tokens_per_s=5650.4,
    step_ms=181.25,
    stored_bytes=4 * LAYER_BYTES + 1000,
    peak_bytes=3 * 2**30,
    mfu=None,
    hfu=None,
    recompute="selective: softmax, dropout",
    sample="First Citizen:\nSpeak.",
    run_dir="runs/tiny",
    interrupted=False,
)


@pytest.fixture
def header():
    """Builds a RunHeader; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(HEADER, **changes)


@pytest.fixture
def report():
    """Builds a StoredReport in which all is equal; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(REPORT, **changes)


@pytest.fixture
def summary():
    """Builds a RunSummary; keywords replace its fields."""
    return lambda **changes: dataclasses.replace(SUMMARY, **changes)


def _metrics(step, **changes):
    return {
        "step": step,
        "samples": 8 * step,
        "tokens": 1024 * step,
        "loss": 8.5 - step / 10,
        "grad_norm": 1.25,
        "lr": 1e-3,
        "step_ms": 500.0,
        "tokens_per_s": 2048.0,
        "mfu": None,
        "hfu": None,
        "stored_bytes": REPORT.measured_total,
        "peak_bytes": None,
        **changes,
    }


@pytest.fixture
def metrics():
    """Builds the metrics of a step; keywords replace values."""
    return _metrics


@pytest.fixture(scope="session")
def run_python_in():
    """Runs `python -c code` in a folder, which is its home too, with no WANDB_* but those given; output as text."""

    def run(folder, code, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"HOME": str(folder / "home"), "NETRC": str(folder / "netrc"), "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, "-c", code],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=20,
            cwd=folder,
            env=environment | variables,
            check=False,
        )

    return run


@pytest.fixture
def run_python(run_python_in, tmp_path):
    """run_python_in the test's own folder."""
    return partial(run_python_in, tmp_path)
