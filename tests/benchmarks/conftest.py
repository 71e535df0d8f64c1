"""Runs of the benchmark runner on a model of a few thousand weights, most of them in this process, which has torch."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).parents[2]
for folder in (ROOT, Path(__file__).parent):  # importlib mode leaves both off it: the package benchmarks, gpu_children
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

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
# One thread: more would wait for each other over tensors as small as these.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
QUICK = ("--device", "cpu", "--rounds", "2", "--seconds", "0.05")


class Done:
    """What a call of the runner's main has answered."""

    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err


class Runner:
    """`runner("step", "--list")` answers as the command would; `runner.json(...)` is a quick run's document."""

    def __init__(self, config: Path):
        self.config = str(config)

    def __call__(self, *arguments):
        from benchmarks.run import main

        out, err = io.StringIO(), io.StringIO()
        argv = mock.patch.object(sys, "argv", ["benchmarks/run.py", *arguments])
        with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main()
        return Done(status, out.getvalue(), err.getvalue())

    def json(self, part, *arguments, status=0):
        done = self(part, *QUICK, *arguments, "--json")
        assert done.status == status, done.err
        return json.loads(done.out)

    def process(self, *arguments):
        """A started process of the script that is named first."""
        command = [sys.executable, *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture
def runner(tmp_path):
    config = tmp_path / "small.yaml"
    config.write_text(CONFIG)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Runner(config)
    torch.set_num_threads(threads)
