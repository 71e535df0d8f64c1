"""The runner needs torch, triton, NumPy and PyYAML: it must run on a GPU machine that has nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Runs the script named after it as __main__, in a process where other packages cannot be imported.
WITHOUT = """
import runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pydantic_core", "tyro", "wandb", "rich", "transformers", "einops",
                                      "safetensors", "sentencepiece", "megatron"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
sys.path[0] = "benchmarks"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_all_but_the_packaged_rivals_run_without_other_packages(runner):
    command = [sys.executable, "-c", WITHOUT, "benchmarks/run.py", "rivals", "--config", runner.config, "--json"]
    few = ["--attention", "unfused", "fused", "--recompute", "none", "all", "--rounds", "1", "--seconds", "0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    names = ["--rival", "plain", "huggingface", "megatron", "--device", "cpu"]
    done = subprocess.run(
        [*command, *few, *names], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    skipped = {row["contender"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert skipped == {
        "huggingface": "ModuleNotFoundError: No module named 'transformers'",
        "megatron": "ModuleNotFoundError: No module named 'megatron'",
    }
    assert {row["status"] for row in rows} == {"ok", "skipped"}
