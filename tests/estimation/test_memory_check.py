"""A setting that a CPU's memory does not hold is a row with the reason, and is not tried."""

from pathlib import Path

from megaselect.cli.main import main
from megaselect.config import Config
from megaselect.estimation.memory_check import missing_for_training

CONFIGS = Path(__file__).parents[2] / "configs"


def config(name, **overrides):
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Config.from_yaml(CONFIGS / f"{name}.yaml", {"training.device": "cpu", **dotted})


def test_what_fits_is_tried():
    assert missing_for_training(config("tiny")) is None
    assert missing_for_training(config("paper-1t", recompute__mode="auto")) is None
    assert missing_for_training(config("paper-1t", training__device="cuda")) is None


def test_what_does_not_fit_says_how_much_it_needs():
    everything, full = (missing_for_training(config("paper-22b", recompute__mode=mode)) for mode in ("none", "full"))
    assert everything.startswith("a step's tensors would hold ")
    assert full != everything


def test_where_nothing_fits_the_command_says_so_in_a_line(tmp_path, capsys):
    flags = ["--config", str(CONFIGS / "paper-1t.yaml"), "--device", "cpu", "--wandb", "disabled"]
    assert main(["compare", *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no setting trains; none: a step's tensors would hold ")
    assert not (tmp_path / "out" / "compare.json").exists()
