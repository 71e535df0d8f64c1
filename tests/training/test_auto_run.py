"""train --recompute auto: a plan that fits, printed and saved with the run, and the same bits as with any mode."""

import json

import pytest

from megaselect.config import Config
from megaselect.planning.auto import assumed_costs, problem_of, smallest_peak
from megaselect.prediction.assumed_time import cpu_speed
from megaselect.prediction.peak import step_peak
from megaselect.prediction.saved_bytes import saved_bytes
from megaselect.recomputation.plan import Chunk, RecomputePlan, no_recompute
from megaselect.training.automatic import PLAN_FILE

# Wide enough that activations are the greater part; steps between which a run can stop.
RUN = (
    *("--model.num-layers", 3, "--training.micro-batch-size", 8, "--training.global-batch-size", 16),
    *("--device", "cpu", "--training.save-interval", 4, "--training.sample-tokens", 0),
)


def problem(make_config):
    overrides = {"model__num_layers": 3, "training__micro_batch_size": 8, "training__global_batch_size": 16}
    return problem_of(make_config(**overrides), 4, on_gpu=False)


def range_of_budgets(make_config):
    """The least that any plan needs, and what `none` needs, in bytes."""
    model = problem(make_config)
    everything = step_peak(model.shape, no_recompute(model.layers), model.static, model.situation)
    return smallest_peak(model, assumed_costs(model.shape, cpu_speed())).bytes, everything.bytes


def megabytes(count):
    return f"{count / 1e6:.6f}MB"


def loaded_plan(run_dir):
    saved = json.loads((run_dir / PLAN_FILE).read_text())
    modules = [frozenset(each["modules"]) for each in saved["chunks"] for _ in range(each["count"])]
    chunks = [Chunk(each["first"], each["count"], each["checkpointed"]) for each in saved["chunks"]]
    return saved, RecomputePlan("auto", tuple(modules), tuple(chunks), saved["recompute_embedding_mask"])


@pytest.fixture
def run_dirs(run_here, run_child, dataset, make_config, tmp_path):
    """(a child with auto that stops after 4 of 8 steps, its directory, its budget, the directory of none's 8 steps)."""
    low, high = range_of_budgets(make_config)
    budget = (low + high) // 2
    flags = (*RUN, "--data.prefix", dataset, "--model.vocab-size", 256, "--training.schedule", "constant")
    auto = ("--recompute", "auto", "--memory", megabytes(budget), "--run-dir", tmp_path / "auto")
    child = run_child(*flags, *auto, "--max-steps", 4)
    assert run_here(*RUN, "--max-steps", 8, "--run-dir", tmp_path / "none") == 0
    return child, tmp_path / "auto", budget, tmp_path / "none"


def test_a_run_within_a_budget(run_dirs, run_here, make_config, read_metrics, read_tensors, capsys):
    child, auto, budget, none = run_dirs
    assert (child.returncode, child.stderr) == (0, "")
    kept, recomputed = read_metrics(none), read_metrics(auto)
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in recomputed] == [line[name] for line in kept[:4]]
    assert_plan_is_told(child.stdout, auto, budget, make_config, recomputed)
    saved = Config.from_yaml(auto / "config.yaml").to_dict()["recompute"]
    assert saved == {"mode": "auto", "memory": megabytes(budget)}
    again = ("--recompute", "auto", "--memory", megabytes(budget), "--run-dir", auto)
    assert run_here(*RUN, *again, "--max-steps", 8) == 0
    assert "note: continuing from step 4" in capsys.readouterr().out
    assert [line["loss"] for line in read_metrics(auto)] == [line["loss"] for line in kept]
    kept, recomputed = read_tensors(none, 8), read_tensors(auto, 8)
    assert [name for name in kept if not kept[name].equal(recomputed[name])] == []


def assert_plan_is_told(output, run_dir, budget, make_config, metrics):
    """The plan in the run directory is within the budget, is what the run saved, and is printed in 80 columns."""
    model = problem(make_config)
    saved, plan = loaded_plan(run_dir)
    peak = step_peak(model.shape, plan, model.static, model.situation)
    assert (saved["predicted_peak_bytes"], saved["predicted_peak_moment"]) == peak
    assert peak.bytes <= saved["budget_bytes"] == budget
    extra = saved["extra_seconds_per_micro_batch"]  # by measured times: on a busy machine none may look as slow
    assert {line["saved_bytes"] for line in metrics} == {saved_bytes(model.shape, plan)}
    assert saved_bytes(model.shape, plan) < saved_bytes(model.shape, no_recompute(3))
    words = " ".join(output.split())
    assert f" recompute auto: {saved['description']} " in words
    held, room = f"{peak.bytes / 2**20:.2f} MiB", f"{budget / 2**20:.2f} MiB"
    assert f"note: auto predicts that tensors hold at most {held} of {room}, in the " in words
    cost = f"{1000 * extra:.1f} ms a micro-batch more than none, by times measured on one layer"
    assert extra >= 0
    assert f"; {cost if extra else 'as fast as none'} " in words
    assert " other settings: none " in words  # auto is none of them: all are others
    assert "WARNING" not in output
    assert [line for line in output.splitlines() if len(line) > 80 and str(run_dir) not in line] == []


def test_without_a_budget_everything_is_kept_where_it_fits(run_here, capsys, tmp_path):
    assert run_here(*RUN, "--recompute", "auto", "--max-steps", 2, "--run-dir", tmp_path / "run") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert " recompute auto: layers 0-2 none " in words
    assert "; as fast as none " in words
    assert loaded_plan(tmp_path / "run")[1] == no_recompute(3, mode="auto")
    assert Config.from_yaml(tmp_path / "run" / "config.yaml").to_dict()["recompute"] == {"mode": "auto", "memory": None}


def refused(run_here, capsys, tmp_path, *flags):
    """The one line of a run that does not begin."""
    assert run_here(*RUN, "--max-steps", 2, "--run-dir", tmp_path / "run", *flags) == 2
    output, errors = capsys.readouterr()
    assert (output, len(errors.splitlines())) == ("", 1)
    assert not (tmp_path / "run").exists()
    return errors


def test_a_budget_that_cannot_be_met(run_here, make_config, capsys, tmp_path):
    low, _ = range_of_budgets(make_config)
    line = refused(run_here, capsys, tmp_path, "--recompute", "auto", "--memory", megabytes(low - 1000))
    assert line.startswith(
        f"error: --recompute auto cannot keep a step within --memory {low - 1000:,} bytes: the least that any plan "
        f"needs is {low:,} bytes (1,000 more, in the "
    )
    assert line.endswith("raise --memory or lower --training.micro-batch-size\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--recompute", "auto", "--memory", "12parsecs"),
            "--memory: recompute.memory 12parsecs: must be a size such as 24GiB; "
            "the units are KiB to TiB, K to T (the same), KB to TB",
        ),
        (
            ("--memory", "24GiB"),
            "--memory: recompute.memory works with mode auto only, but recompute.mode is none; remove it, or set the "
            "mode (--recompute auto)",
        ),
        (
            ("--recompute", "full", "--memory", "24GiB"),
            "--memory and --recompute: recompute.memory works with mode auto only, but recompute.mode is full; remove "
            "it, or set the mode (--recompute auto)",
        ),
    ],
)
def test_wrong_flags(run_here, capsys, tmp_path, flags, message):
    assert refused(run_here, capsys, tmp_path, *flags) == f"error: {message}\n"
