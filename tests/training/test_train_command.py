"""Runs of train.py: what they print and write, and that recompute modes change bytes and nothing else."""

import os
import pty
import subprocess

import pytest

from megaselect.config import Config
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan
from megaselect.report.text import SAMPLE_TITLE

STEPS = 6
MODES = {
    "none": ("--recompute", "none"),
    "selective": ("--recompute", "selective"),
    "core_attn": ("--recompute", "selective", "--recompute-modules", "core_attn", "dropout"),
    "all": ("--recompute", "selective", "--recompute-modules", "all"),
    "full": ("--recompute", "full"),
}
IN_CHILDREN = ("selective",)  # as a user runs it; the other modes run here, in a fraction of the time
KEYS = [
    *("step", "samples", "tokens", "loss", "grad_norm", "lr", "step_ms", "tokens_per_s", "mfu", "hfu"),
    *("saved_bytes", "peak_bytes", "allocated_bytes", "reserved_bytes", "resident_bytes", "skipped_steps"),
    *("data_ms", "forward_ms", "backward_ms", "optimizer_ms"),
]
EVALUATED = (3, 6)


@pytest.fixture(scope="module")
def runs(run_child, run_main, tmp_path_factory):
    """Mode -> (run directory, what the run returned and printed)."""
    home = tmp_path_factory.mktemp("runs")
    flags = ("--max-steps", STEPS, "--training.sample-tokens", 8, "--device", "cpu")
    run = {name: run_child if name in IN_CHILDREN else run_main for name in MODES}
    return {name: (home / name, run[name](*mode, *flags, "--run-dir", home / name)) for name, mode in MODES.items()}


@pytest.mark.parametrize("mode", MODES)
def test_exits_with_0_and_an_empty_stderr(runs, mode):
    _, child = runs[mode]
    assert (child.returncode, child.stderr) == (0, "")


@pytest.mark.parametrize("mode", MODES)
def test_metrics_hold_one_object_a_step_with_exactly_the_named_keys(runs, mode, read_metrics):
    metrics = read_metrics(runs[mode][0])
    expected = [[*KEYS, *(["valid_loss"] if step in EVALUATED else [])] for step in range(1, STEPS + 1)]
    assert [list(line) for line in metrics] == expected
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert [line["samples"] for line in metrics] == [4, 8, 12, 16, 20, 24]
    assert [line["tokens"] for line in metrics] == [64, 128, 192, 256, 320, 384]
    assert all(line["mfu"] is None and line["hfu"] is None for line in metrics)  # the CPU's peak is not on file
    assert all(line["peak_bytes"] >= line["resident_bytes"] > line["saved_bytes"] for line in metrics)
    assert all(line["allocated_bytes"] is line["reserved_bytes"] is None for line in metrics)  # only a GPU has them
    for line in metrics:
        assert line["tokens_per_s"] * line["step_ms"] == pytest.approx(64e3, rel=1e-12)
        phases = [line[f"{phase}_ms"] for phase in ("data", "forward", "backward", "optimizer")]
        assert min(phases) > 0
        assert sum(phases) <= line["step_ms"]


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_losses_and_gradients_are_those_of_none_to_the_bit(runs, mode, read_metrics):
    kept, recomputed = read_metrics(runs["none"][0]), read_metrics(runs[mode][0])
    for name in ("loss", "grad_norm", "lr"):
        assert [line[name] for line in recomputed] == [line[name] for line in kept]


def test_losses_differ_from_step_to_step(runs, read_metrics):
    assert len({line["loss"] for line in read_metrics(runs["none"][0])}) == STEPS


@pytest.mark.parametrize("mode", MODES)
def test_weights_are_those_of_none_to_the_bit(runs, mode, read_tensors):
    kept, recomputed = read_tensors(runs["none"][0], STEPS), read_tensors(runs[mode][0], STEPS)
    assert kept.keys() == recomputed.keys()
    assert all(kept[name].equal(recomputed[name]) for name in kept)


@pytest.mark.parametrize("mode", MODES)
def test_saved_bytes_are_those_that_the_theory_predicts(runs, mode, read_metrics):
    run_dir, _ = runs[mode]
    config = Config.from_yaml(run_dir / "config.yaml")
    predicted = saved_bytes(LayerShape.of(config, 4), make_plan(config.recompute, config.model.num_layers))
    assert {line["saved_bytes"] for line in read_metrics(run_dir)} == {predicted}


def test_saved_bytes_fall_from_mode_to_mode(runs, read_metrics):
    sizes = [read_metrics(run_dir)[0]["saved_bytes"] for run_dir, _ in runs.values()]
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]


@pytest.mark.parametrize("mode", MODES)
def test_output_says_that_prediction_and_measurement_agree(runs, mode):
    output = runs[mode][1].stdout
    assert output.count("equal to the byte") == 1
    for part in ("valid loss", SAMPLE_TITLE, "finished", "note: dropout_p 0.1 is 0.1016 here", f"step {STEPS}/{STEPS}"):
        assert part in output


@pytest.mark.parametrize("mode", MODES)
def test_output_is_not_wider_than_a_terminal_but_for_paths(runs, mode):
    run_dir, child = runs[mode]
    wide = [line for line in child.stdout.splitlines() if len(line) > 80 and str(run_dir) not in line]
    assert wide == []
    assert "\033" not in child.stdout  # no colours where the output is not a terminal


def test_sample_is_the_same_in_every_mode(runs):
    samples = {child.stdout.partition(f"\n{SAMPLE_TITLE}\n")[2] for _, child in runs.values()}
    assert len(samples) == 1
    assert samples.pop().strip()


def test_config_in_the_run_directory_is_the_config_of_the_run(runs):
    expected = {
        "none": {"mode": "none"},
        "selective": {"mode": "selective", "modules": ["softmax", "dropout"], "layers": None},
        "core_attn": {"mode": "selective", "modules": ["core_attn", "dropout"], "layers": None},
    }
    for mode, (run_dir, _) in runs.items():
        config = Config.from_yaml(run_dir / "config.yaml")
        assert config.training.run_dir == str(run_dir)
        assert (config.model.hidden_size, config.training.max_steps) == (32, STEPS)
        assert Config.from_dict(config.to_dict()) == config
        assert config.to_yaml() == (run_dir / "config.yaml").read_text()
        if mode in expected:
            assert config.to_dict()["recompute"] == expected[mode]


def test_config_of_a_run_gives_the_same_config_as_its_flags(runs, child_command):
    from megaselect.cli.train import parse_train_args

    run_dir, _ = runs["full"]
    flags = ("--max-steps", STEPS, "--training.sample-tokens", 8, "--device", "cpu", "--run-dir", run_dir)
    command = child_command("--wandb", "disabled", *MODES["full"], *flags)
    assert Config.from_yaml(run_dir / "config.yaml") == parse_train_args(command[2:]).config


def test_wandb_without_a_key_is_offline_and_never_asks(child_command, child_environment, tmp_path, read_metrics):
    """On a terminal, where the SDK's own question would wait for ever."""
    ours, theirs = pty.openpty()
    environment = child_environment | {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    cache = os.environ.get("MEGASELECT_CACHE", os.path.expanduser("~/.cache/megaselect"))
    flags = ("--wandb", "auto", "--max-steps", 2, "--training.sample-tokens", 0, "--run-dir", tmp_path / "run")
    try:
        child = subprocess.run(
            child_command(*flags, "--data.cache-dir", cache),
            env=environment,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert child.returncode == 0, child.stderr
    told = " ".join(child.stdout.split())
    assert told.count("wandb: ") == 1
    assert "wandb: offline (no API key); to upload: wandb sync" in told
    assert "API key:" not in child.stdout + child.stderr
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert len(read_metrics(tmp_path / "run")) == 2
