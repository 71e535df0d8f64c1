"""train.py with the other attention, a loss in chunks and compiled layers: equal losses, and bytes as predicted."""

from pathlib import Path

import pytest
import torch

from megaselect.config import Config
from megaselect.devices import Placement
from megaselect.distributed.ranks import Ranks
from megaselect.training import run
from megaselect.training.state import RunState

ROOT = Path(__file__).parents[2]
STEPS = 4
FLAGS = ("--max-steps", STEPS, "--training.sample-tokens", 8, "--device", "cpu", "--training.loss-chunk-tokens", 10)
FUSED = ("--attention", "fused")
ALL = ("--recompute", "selective", "--recompute-modules", "all")


def losses(metrics):
    return [(line["loss"], line["grad_norm"]) for line in metrics]


def fused_run(run, run_dir, *flags):
    """(what it printed, its run directory) of a run with fused attention; run: run_child or run_main."""
    done = run(*FLAGS, *FUSED, *flags, "--run-dir", run_dir)
    # torch 2.11 says so where its build for CUDA compiles, there is an nvcc, and there is no GPU.
    errors = [line for line in done.stderr.splitlines() if "No CUDA runtime is found" not in line]
    assert (done.returncode, errors) == (0, [])
    return done.stdout, run_dir


@pytest.fixture(scope="module")
def rebuilding_all(run_main, tmp_path_factory):
    return fused_run(run_main, tmp_path_factory.mktemp("all"), *ALL)


def test_fused_attention_rebuilding_all_trains_to_the_same_bits(run_main, rebuilding_all, read_metrics, tmp_path):
    _, kept = fused_run(run_main, tmp_path, "--recompute", "none")
    printed, recomputed = rebuilding_all
    assert losses(read_metrics(recomputed)) == losses(read_metrics(kept))
    assert "attention      fused\n" in printed
    assert "recompute      selective: all\n" in printed
    assert "(equal to the byte)" in printed
    assert read_metrics(recomputed)[0]["saved_bytes"] < read_metrics(kept)[0]["saved_bytes"]


@pytest.mark.soak
@pytest.mark.compiles
def test_a_compiled_run_evaluates_and_generates_too(run_child, rebuilding_all, read_metrics, tmp_path):
    printed, compiled = fused_run(run_child, tmp_path, *ALL, "--compile")
    _, plain = rebuilding_all
    assert "(equal to the byte)" in printed
    for got, wanted in zip(losses(read_metrics(compiled)), losses(read_metrics(plain)), strict=True):
        assert got == pytest.approx(wanted, rel=1e-5)  # gradients of biases are added in another order
    assert printed.count("valid loss") >= 2


@pytest.mark.parametrize(
    ("attention", "device", "deterministic", "noted"),
    [
        ("sdpa", "cuda", False, True),
        ("sdpa", "cuda", True, False),
        ("sdpa", "cpu", False, False),
        ("fused", "cuda", False, False),
    ],
)
def test_a_run_says_where_its_attention_does_not_repeat_itself(attention, device, deterministic, noted):
    placement = Placement(torch.device(device), torch.float32)
    overrides = {"model.attention": attention, "model.dropout_p": 0.0, "training.deterministic": deterministic}
    notes = run._own_notes(Config.from_yaml(ROOT / "configs/tiny.yaml", overrides), placement, RunState(0, 0), Ranks())
    assert [note for note in notes if "only with --deterministic" in note] == notes
    assert len(notes) == noted
