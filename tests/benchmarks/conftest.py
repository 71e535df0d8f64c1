"""Runs of the benchmark runner in a process of its own, on a model of a few thousand weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # importlib mode leaves the root off it: the package benchmarks

CONFIG = """
model:
  num_layers: 2
  hidden_size: 64
  num_attention_heads: 2
  seq_length: 32
  vocab_size: 200
training:
  micro_batch_size: 2
"""


class Runner:
    """`runner("step", "--json")` is a finished process; `runner.json(...)` its document."""

    def __init__(self, config: Path):
        self.config = str(config)

    def __call__(self, *arguments, script="run.py"):
        # One thread: more would wait for each other over tensors as small as these.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, f"benchmarks/{script}", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)

    def json(self, *arguments, status=0):
        done = self(*arguments, "--json", "--device", "cpu", "--rounds", "2", "--seconds", "0.1")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def runner(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    return Runner(config)
