"""Memory that runs out on one rank: all take the next stronger setting and begin again, or all end with its line."""

import json

import pytest
import spoiled_runs

FLAGS = ("--max-steps", 6, "--training.save-interval", 2, "--recompute", "none")


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.parametrize(
    ("sharding", "rank", "point"),
    [
        ("parameters", 0, "forward"),
        pytest.param("parameters", 1, "backward", marks=pytest.mark.soak),
        pytest.param("none", 1, "forward", marks=pytest.mark.soak),
    ],
)
def test_all_ranks_step_up_together_and_the_losses_stay(pool, tmp_path, sharding, rank, point):
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    assert spoiled_runs.run((*FLAGS, "--run-dir", alone))[0] == 0
    flags = (*FLAGS, "--on-oom", "step-up", "--parallel.sharding", sharding, "--run-dir", ranks)
    results = pool.run(2, "spoiled_runs", "run_short_of_memory", flags=flags, short_rank=rank, points={11: point})
    assert [code for code, *_ in results] == [0, 0], results
    said = " ".join(results[0][1].split())
    assert "step 4 ran out of memory" in said  # three micro-batches a step and rank
    assert "It is taken again with selective" in said
    assert "continuing from step 3" in said  # which had the best loss
    assert results[1][1:] == ("", "")
    assert losses(ranks) == losses(alone)


def test_without_step_up_all_end_with_one_line(pool, tmp_path):
    flags = (*FLAGS, "--run-dir", tmp_path / "run")
    results = pool.run(2, "spoiled_runs", "run_short_of_memory", flags=flags, short_rank=1, points={5: "forward"})
    assert [code for code, *_ in results] == [2, 2], results
    lines = [line for _, _, err in results for line in err.splitlines()]
    assert len(lines) == 1, results
    assert "rank 1 (process" in lines[0]
    assert "step 2 ran out of memory" in lines[0]
