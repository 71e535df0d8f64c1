"""A step that is not finite on one rank is left out, or ends the run, on all of them; one line names the tensor."""

import json

import pytest
import spoiled_runs

FC1 = "layers.1.mlp.fc1"
SAMPLE = 31  # in micro-batch 3 of step 3: rank 1's of two
LOOSE = ("loss", "grad_norm", "valid_loss", "skipped_steps", "samples")


@pytest.fixture
def metrics():
    """The lasting part of the lines of a run's metrics."""

    def read(run_dir):
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [{name: line.get(name) for name in LOOSE} for line in lines]

    return read


@pytest.mark.parametrize("sharding", ["parameters", "none"])
def test_it_is_left_out_by_all_alike(pool, metrics, tmp_path, sharding):
    flags = ("--max-steps", 5, "--on-nonfinite", "skip")
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    assert spoiled_runs.run((*flags, "--run-dir", alone), (FC1, SAMPLE))[0] == 0
    results = pool.run(
        2,
        "spoiled_runs",
        "run",
        flags=(*flags, "--parallel.sharding", sharding, "--run-dir", ranks),
        nan_in=(FC1, SAMPLE),
    )
    assert [code for code, *_ in results] == [0, 0], results
    assert results[1][1:] == ("", "")
    note = " ".join(results[0][1].split())
    assert f"first not finite: output of {FC1}, 1 of" in note
    assert "in micro-batch 3; the step is left out" in note
    assert metrics(ranks) == metrics(alone)
    assert metrics(ranks)[2]["loss"] is None


def test_it_ends_the_run_in_one_line_with_what_is_needed_to_see_it_again(pool, tmp_path):
    results = pool.run(
        2, "spoiled_runs", "run", flags=("--max-steps", 5, "--run-dir", tmp_path / "run"), nan_in=(FC1, SAMPLE)
    )
    assert [code for code, *_ in results] == [2, 2], results
    lines = [line for _, _, err in results for line in err.splitlines()]
    assert len(lines) == 1, results
    assert f"step 3: the loss is nan; first not finite: output of {FC1}, 1 of" in lines[0]
    home = tmp_path / "run" / "nonfinite" / "step-3"
    report = json.loads((home / "report.json").read_text())
    assert report["samples"] == [30, 31]
    assert (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").exists()
