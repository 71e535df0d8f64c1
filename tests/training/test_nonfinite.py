"""A step that is not finite is left out, its tensor is named, and what is needed to see it again is saved."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megaselect.build import build_model
from megaselect.config import Config
from megaselect.data.sampler import TokenSource
from megaselect.training import nonfinite
from megaselect.training.nonfinite import MAX_IN_A_ROW

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
import poison

ALONE = ("--training.sample-tokens", 0, "--no-training.keep-best", "--training.eval-interval", 0)
FC1 = "layers.1.mlp.fc1"


@pytest.fixture
def refused(run_here, capsys):
    """`refused(*flags)`: the one line with which a run ends with exit code 2."""

    def run(*flags):
        capsys.readouterr()
        assert run_here(*flags) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("error: ")
        assert len(errors.splitlines()) == 1
        return errors

    return run


@pytest.fixture
def read_strictly():
    """The objects of metrics.jsonl. NaN and Infinity are no JSON."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    def read(run_dir):
        lines = (run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line, parse_constant=refuse) for line in lines]

    return read


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_stops_before_the_step_and_goes_on_without_it(
    refused, run_here, read_strictly, read_tensors, dataset, monkeypatch, tmp_path, dtype
):
    poison.in_runs(monkeypatch, FC1, 14, poison.nan_in_output)  # in the second micro-batch of step 4
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    flags = ("--max-steps", 6, "--training.save-interval", 3, "--dtype", dtype, *ALONE)
    error = refused(*flags, "--run-dir", parts)
    home, saved = parts / "nonfinite" / "step-4", parts / "checkpoints" / "step-00000003"
    assert f"step 4: the loss is nan; first not finite: output of {FC1}, 1 of 4096 values, in micro-batch 1" in error
    for part in (str(home), str(saved), "--on-nonfinite skip"):
        assert part in error
    report, batch = json.loads((home / "report.json").read_text()), load_file(home / "batch.safetensors")
    assert (report["step"], report["loss"], report["found"]["where"]) == (4, "nan", FC1)
    assert (report["samples"], report["checkpoint"]) == ([14, 15], str(saved))
    expected = TokenSource(dataset, 16, 1234, part=(0, 0.95)).batch(14, 2)
    assert all(batch[name].equal(getattr(expected, name)) for name in ("tokens", "targets", "sample_index"))
    assert [line["step"] for line in read_strictly(parts)] == [1, 2, 3]

    for run_dir in (parts, whole):
        assert run_here(*flags, "--on-nonfinite", "skip", "--run-dir", run_dir) == 0
    names = ("step", "samples", "loss", "grad_norm", "skipped_steps")
    lines, in_one_go = ([[line[name] for name in names] for line in read_strictly(home)] for home in (parts, whole))
    assert lines == in_one_go
    assert lines[3] == [4, 16, None, None, 1]
    assert (lines[4][4], lines[5][4]) == (1, 1)
    tensors, expected = read_tensors(parts, 6), read_tensors(whole, 6)
    assert [name for name in tensors if not tensors[name].equal(expected[name])] == []
    assert all(tensors[name] == 5 for name in tensors if name.startswith("step."))  # five of six steps were taken


def test_a_step_that_is_left_out_is_told_with_its_place_the_first_time(run_here, capsys, monkeypatch, tmp_path):
    for sample in (4, 8, 16):
        poison.in_runs(monkeypatch, FC1, sample, poison.inf_in_gradient)
    flags = ("--max-steps", 5, "--training.save-interval", 0, "--on-nonfinite", "skip", *ALONE)
    assert run_here(*flags, "--run-dir", tmp_path / "run") == 0
    output = " ".join(capsys.readouterr().out.split())
    place = f"first not finite: gradient of the output of {FC1}, 1 of 4096 values, in micro-batch 0"
    left_out = "the step is left out, the weights stay as they were"
    assert f"step 2: the gradient norm is nan; {place}; {left_out}" in output
    assert output.count("; first not finite: ") == output.count(left_out) == 1  # steps 3 and 5 only repeat it


def test_steps_that_are_left_out_are_told_now_and_then(run_here, capsys, monkeypatch, tmp_path):
    """Every tenth of those that repeat, and one that comes after a long while."""
    bad = [*range(3, 14), 24]
    for step in bad:
        poison.in_runs(monkeypatch, "", 4 * (step - 1), lambda loss: loss * float("inf"))
    flags = ("--max-steps", 25, "--training.save-interval", 0, "--on-nonfinite", "skip", *ALONE)
    assert run_here(*flags, "--logging.log-interval", 5, "--run-dir", tmp_path / "run") == 0
    lines = capsys.readouterr().out
    told = re.findall(r"step (\d+): the loss is .*? stay as they were(?: \((.*?)\))?", " ".join(lines.split()))
    assert told == [("3", ""), ("12", "10 such steps so far"), ("24", "12 such steps so far")]
    steps = re.findall(r"^step +(\d+)/25  loss +(-|\d).*?(?:skipped +(\d+).*)?$", lines, re.MULTILINE)
    assert steps[1:3] == [("10", "-", "8"), ("15", "5", "11")]


def test_many_in_a_row_stop_a_run_that_leaves_them_out(refused, read_strictly, tmp_path):
    """The step before made weights that are finite and useless."""
    flags = ("--training.lr", 1e30, "--training.warmup-steps", 0, "--max-steps", 40, "--on-nonfinite", "skip")
    error = refused(*flags, "--training.save-interval", 0, *ALONE, "--run-dir", tmp_path)
    assert f"{MAX_IN_A_ROW} such steps in a row: begin again in another --run-dir with a lower --training.lr" in error
    lines = read_strictly(tmp_path)
    assert len(lines) == MAX_IN_A_ROW
    assert [line["skipped_steps"] for line in lines] == list(range(MAX_IN_A_ROW))
    assert list(tmp_path.glob("checkpoints/step-*")) == []  # nobody should continue from such weights
    report = json.loads((tmp_path / "nonfinite" / f"step-{MAX_IN_A_ROW + 1}" / "report.json").read_text())
    assert report["checkpoint"] is None


@pytest.mark.parametrize(("interval", "saved"), [(3, [2, 4]), (5, [4, 5])])
def test_a_streak_keeps_the_checkpoints_before_it_and_names_the_last_good_one(
    refused, run_here, tmp_path, interval, saved
):
    """Step 5 makes the weights useless; a checkpoint of that step is none to go back to."""
    flags = ("--training.warmup-steps", 0, "--on-nonfinite", "skip", *ALONE, "--run-dir", tmp_path)
    assert run_here("--max-steps", 4, "--training.save-interval", 2, *flags) == 0
    error = refused("--max-steps", 40, "--training.lr", 1e30, "--training.save-interval", interval, *flags)
    good = tmp_path / "checkpoints" / "step-00000004"
    assert "step 25: the loss is nan" in error
    assert error.endswith(f"in a row: go back with --resume {good} and a lower --training.lr\n")
    assert sorted(int(path.name[5:]) for path in good.parent.glob("step-*")) == saved


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_no_checkpoint_is_made_of_weights_that_are_not_finite(refused, run_here, tmp_path, on_nonfinite):
    """A later run would continue from it. The learning rate is infinite as an fp32 number."""
    flags = ("--training.warmup-steps", 0, *ALONE, "--run-dir", tmp_path)
    assert run_here("--max-steps", 2, *flags, "--training.save-interval", 2) == 0
    more = ("--max-steps", 5, "--training.lr", 1e39, "--on-nonfinite", on_nonfinite, "--training.save-interval", 0)
    error = refused(*flags, *more)
    assert "step 4: the loss is nan; first not finite: weight token_embedding.weight, 8192 of 8192 values. " in error
    kept = tmp_path / "checkpoints" / "step-00000002"
    assert error.endswith(f"; go back with --resume {kept} and a lower --training.lr\n")
    assert [path.name for path in kept.parent.glob("step-*")] == [kept.name]
    batch = load_file(tmp_path / "nonfinite" / "step-4" / "batch.safetensors")
    assert batch["sample_index"].tolist() == [12, 13, 14, 15]


def test_a_batch_is_seen_again_as_the_documentation_says(refused, tmp_path):
    flags = ("--training.lr", 1e30, "--training.warmup-steps", 0, "--training.save-interval", 0, *ALONE)
    refused(*flags, "--max-steps", 5, "--run-dir", tmp_path)
    report = json.loads((tmp_path / "nonfinite" / "step-2" / "report.json").read_text())
    starts = ("    model", "    batch", "    loss")
    lines = [line.strip() for line in nonfinite.__doc__.splitlines() if line.startswith(starts)]
    assert len(lines) == 4
    code = "\n".join(lines).replace("RUN", str(tmp_path)).replace("step-7", "step-2").replace("00000006", "00000001")
    names = {"build_model": build_model, "Config": Config, "load_file": load_file}
    exec(code, names)
    assert names["loss"].isnan()
    assert report["loss"] == "nan"
    first = dict(names["model"].named_modules())[report["found"]["where"]]
    seen = []
    first.register_forward_hook(lambda _, __, output: seen.append(int(output.isfinite().logical_not().sum())))
    names["model"](*(names["batch"][name] for name in ("tokens", "targets", "sample_index")))
    assert seen == [report["found"]["nonfinite"]]


def test_fp16_gradients_that_overflow_are_no_reason_to_stop(run_here, read_strictly, capsys, monkeypatch, tmp_path):
    poison.in_runs(monkeypatch, FC1, 5, poison.inf_in_gradient)
    flags = ("--max-steps", 3, "--dtype", "fp16", "--training.save-interval", 0, *ALONE)
    assert run_here(*flags, "--run-dir", tmp_path) == 0
    lines = read_strictly(tmp_path)
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1]
    assert [line["loss_scale"] for line in lines] == [2**15, 2**14, 2**14]
    assert [line["grad_norm"] is None for line in lines] == [False, True, False]
    assert lines[1]["loss"] > 0
    assert "step 2: fp16 gradients overflowed; step skipped, loss scale halved" in capsys.readouterr().out


def test_an_fp16_loss_that_is_not_finite_is_one(refused, monkeypatch, tmp_path):
    poison.in_runs(monkeypatch, "", 5, lambda loss: loss * float("inf"))
    flags = ("--max-steps", 3, "--dtype", "fp16", "--training.save-interval", 0, *ALONE)
    error = refused(*flags, "--run-dir", tmp_path)
    assert "step 2: the loss is inf; first not finite: output of the model, 1 of 1 values, in micro-batch 0. " in error
    assert error.endswith("begin again in another --run-dir with a lower --training.lr or --dtype bf16\n")
    state = json.loads((tmp_path / "checkpoints" / "step-00000001" / "state.json").read_text())
    assert state["loss_scale"]["scale"] == 2**15


def test_a_report_that_cannot_be_written_leaves_the_error_as_it_is(refused, run_here, monkeypatch, tmp_path):
    """In a first step, too, after which the run can go on."""
    poison.in_runs(monkeypatch, FC1, 1, poison.nan_in_output)
    (tmp_path / "nonfinite").write_text("a file where a directory should be")
    flags = ("--max-steps", 2, "--training.save-interval", 0, *ALONE, "--run-dir", tmp_path)
    error = refused(*flags)
    assert f"step 1: the loss is nan; first not finite: output of {FC1}" in error
    assert f"Batch and report could not be saved in {tmp_path / 'nonfinite' / 'step-1'}: " in error
    assert run_here(*flags, "--on-nonfinite", "skip", "--resume", tmp_path / "checkpoints" / "step-00000000") == 0


def out_of_memory(_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("second", "doubt"),
    [
        (lambda output: output, "; run again, all of the step was finite: suspect the hardware"),
        (out_of_memory, "; memory is too short to watch the step and find the tensor. "),
    ],
)
def test_a_tensor_that_cannot_be_found(refused, monkeypatch, tmp_path, second, doubt):
    """All of the step is saved then."""
    acts = iter([poison.nan_in_output, second])
    poison.in_runs(monkeypatch, FC1, 5, lambda output: next(acts)(output))
    error = refused("--max-steps", 3, "--training.save-interval", 0, *ALONE, "--run-dir", tmp_path)
    assert f"step 2: the loss is nan{doubt}" in error
    home = tmp_path / "nonfinite" / "step-2"
    assert json.loads((home / "report.json").read_text())["found"] is None
    assert load_file(home / "batch.safetensors")["sample_index"].tolist() == [4, 5, 6, 7]


def test_an_evaluation_that_is_not_finite_is_never_the_best(run_here, read_strictly, tmp_path):
    flags = ("--max-steps", 3, "--training.lr", 1e30, "--training.warmup-steps", 0, "--on-nonfinite", "skip")
    more = ("--training.eval-interval", 1, "--training.save-interval", 3, "--training.sample-tokens", 0)
    assert run_here(*flags, *more, "--run-dir", tmp_path) == 0
    assert [line["valid_loss"] for line in read_strictly(tmp_path)] == [None, None, None]
    state = json.loads((tmp_path / "checkpoints" / "step-00000003" / "state.json").read_text())
    assert state["state"]["best_step"] is None
