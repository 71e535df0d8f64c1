"""The runner needs torch, triton, NumPy and PyYAML: it must run on a GPU machine that has nothing else."""

import json

# Runs scripts one after the other as __main__, in a process where other packages cannot be imported.
WITHOUT = """
import contextlib, io, json, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pydantic", "pydantic_core", "tyro", "wandb", "rich", "transformers", "einops",
                                      "safetensors", "sentencepiece", "megatron"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
answers = []
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv, sys.path[0] = [script, *arguments], "benchmarks"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    answers.append(out.getvalue())
print(json.dumps(answers))
"""
RUN, GROWTH, PAGE = "benchmarks/run.py", "benchmarks/memory_growth.py", "benchmarks/not_measured.py"
QUICK = ["--device", "cpu", "--json", "--rounds", "1", "--seconds", "0.05"]


def test_every_script_runs_without_other_packages(runner):
    few = ["--config", runner.config, "--attention", "unfused", "fused", "--recompute", "none", "all"]
    kernels = ["--seq", "16", "--head-size", "16", "--dropout", "0.1"]
    scripts = [
        [RUN, "baselines", *few, *QUICK, "--baseline", "plain", "huggingface", "megatron"],
        [RUN, "headline", *QUICK, "--case", "bits fp32 d=64 s=128 b=1"],
        [RUN, "kernels", *kernels, *QUICK],
        [GROWTH, "--config", runner.config, "--steps", "4", "--device", "cpu"],
        [PAGE],
    ]
    process = runner.process("-c", WITHOUT, json.dumps(scripts))
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    baselines, headline, kernels, growth, page = json.loads(out.splitlines()[-1])

    rows = json.loads(baselines)["rows"]
    skipped = {row["contender"]: row["reason"] for row in rows if row["status"] == "skipped"}
    assert skipped == {
        "huggingface": "ModuleNotFoundError: No module named 'transformers'",
        "megatron": "ModuleNotFoundError: No module named 'megatron'",
    }
    assert {row["status"] for row in rows} == {"ok", "skipped"}
    assert {row["status"] for row in json.loads(headline)["rows"]} == {"ok"}
    assert {row["status"] for row in json.loads(kernels)["rows"]} == {"ok"}
    assert "unfused selective: " in growth
    assert "not judged below 40 steps" in growth
    assert page.startswith("# Not measured on a GPU")
