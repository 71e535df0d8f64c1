"""estimate, verify and compare tell the same bytes and FLOPs of the same config."""

import json

import pytest

from megaselect.cli.main import main

TRAINING_ONLY = ("--max-steps", "--training.warmup-steps", "--wandb")  # what verify, which trains nothing, refuses


@pytest.fixture
def answer(tiny_flags, capsys):
    """answer(command): what it prints as JSON for the comparison's config."""

    def run(command):
        flags = list(tiny_flags)
        for name in TRAINING_ONLY:
            place = flags.index(name)
            del flags[place : place + 2]
        assert main([command, *flags, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_compare_measures_what_estimate_predicts(compared, answer):
    predicted = answer("estimate")["attention"]["unfused"]["modes"]
    for setting in compared.result.settings:
        row = predicted[setting.name]
        assert setting.saved.measured == setting.saved.predicted == row["saved_bytes"]
        assert setting.saved.measured_by_name == row["saved_bytes_by_tensor"]
        assert setting.predicted_peak_bytes == row["peak_bytes"]
        micro_batches = 2
        flops = (micro_batches * row["model_flops"], micro_batches * row["hardware_flops"])
        assert (setting.model_flops, setting.hardware_flops) == flops


def test_verify_measures_what_estimate_predicts(answer):
    predicted = answer("estimate")["attention"]
    seen = set()
    for subject in answer("verify")["subjects"]:
        if subject["left_out"]:
            continue
        rows = predicted[subject["attention"]]
        row = rows["module_sets"].get(subject["name"]) or rows["modes"][subject["name"]]
        assert subject["saved_bytes"] == row["saved_bytes"], subject["name"]
        assert subject["rerun_flops"] == row["hardware_flops"] - row["model_flops"], subject["name"]
        seen.add((subject["attention"], subject["name"]))
    assert {("unfused", "none"), ("unfused", "selective"), ("unfused", "all"), ("fused", "full")} <= seen
