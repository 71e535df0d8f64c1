"""examples/: each script runs as a stranger would run it, in silence on stderr, and prints what its docstring says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
LONGEST = 60  # lines


@pytest.fixture
def run_example(tmp_path):
    """`run_example(name)`: the lines that the script prints, run in an empty directory."""

    def run(name):
        names = (name for name in os.environ if not name.startswith("WANDB_"))
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {name: os.environ[name] for name in names} | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        command = [sys.executable, ROOT / "examples" / name]
        child = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        assert (child.returncode, child.stderr) == (0, "")
        return child.stdout.splitlines()

    return run


def test_train_from_python(run_example, tmp_path):
    lines = run_example("train_from_python.py")
    assert [line for line in lines if line.startswith("recompute")] == [
        "recompute none",
        "recompute selective: softmax, dropout",
    ]
    saved = [int(line.split()[0].replace(",", "")) for line in lines if "saved for backward" in line]
    assert saved[0] > saved[1]
    rows = [line.split() for line in lines if re.match(r" +\d+ +\d+\.\d+", line)]
    assert [int(row[0]) for row in rows] == [5, 10, 15, 20]
    assert all(row[1] == row[2] for row in rows)
    assert len({row[1] for row in rows}) == len(rows)
    assert lines[-1] == "equal, to the bit"
    run_dirs = [tmp_path / line.split()[-1] for line in lines if "run directory" in line]
    metrics = [[json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()] for home in run_dirs]
    assert [f"{line['loss']:.6f}" for line in metrics[0][4::5]] == [row[1] for row in rows]
    assert [line["saved_bytes"] for line in (metrics[0][0], metrics[1][0])] == saved


def test_verify_your_own_model(run_example):
    output = "\n".join(run_example("verify_your_own_model.py"))
    right, wrong = output.split("preserve_rng_state=")[1:]
    assert right.startswith("True: passed\n")
    assert "failed" not in right
    assert wrong.startswith("False: FAILED\n")
    failed = re.findall(r"^  failed  ([a-z ]+):", wrong, re.MULTILINE)
    assert failed == ["random numbers", "same bits", "second run"]
    assert "aten.bernoulli_ in backward draws other numbers" in wrong


def test_bytes_of_any_model(run_example):
    """Of the checkpointed one the ledger may know the input of each layer alone: 8 x 128 x 64 values of four bytes."""
    lines = [line.strip() for line in run_example("bytes_of_any_model.py")]
    totals = [int(re.search(r"([\d,]+) bytes$", line)[1].replace(",", "")) for line in lines if line.endswith(" bytes")]
    layers = [int(line.split()[-1].replace(",", "")) for line in lines if re.match(r"layers\.\d |outside", line)]
    assert [sum(layers[:4]), sum(layers[4:])] == totals
    assert layers[5:] == [8 * 128 * 64 * 4] * 3
    assert layers[0] == layers[4]
    assert len({*layers[1:4]}) == 1
    names = [line.rpartition("  (")[0].split("  ")[0] for line in lines if line.endswith(")")]
    assert len(names) == 4
    assert "block: relu output" in names


def test_each_example_is_short_and_is_listed():
    listed = re.findall(r"\]\((\w+\.py)\)", (ROOT / "examples/README.md").read_text())
    assert sorted(listed) == [path.name for path in SCRIPTS]
    assert [path.name for path in SCRIPTS if len(path.read_text().splitlines()) >= LONGEST] == []
