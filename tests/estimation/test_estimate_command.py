"""The command as a user meets it: 80 columns, JSON, one line for a mistake, and no torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megaselect.cli.main import main
from megaselect.recomputation.presets import PRESETS, setting_flags

ROOT = Path(__file__).parents[2]
TINY = ["estimate", "--config", str(ROOT / "configs/tiny.yaml"), "--device", "cpu"]


def printed(capsys, *arguments):
    code = main([*TINY, *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_needs_no_torch():
    code = (
        "import sys; from megaselect.cli.main import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    for more in ([], ["--json"], ["--recompute", "auto", "--memory", "90MiB"]):
        command = [sys.executable, "-c", code, *TINY, *more]
        child = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert (child.returncode, child.stderr) == (0, "")


def test_the_tables_fit_80_columns_and_show_the_bytes(capsys):
    code, out, _ = printed(capsys, "--memory", "100MiB", "--recompute", "full")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out
    lines = [line.split() for line in out.splitlines()]
    assert ["none", "19.14", "94.28", "4.88", "127.68", "–"] in [words[:6] for words in lines]
    assert ["full", "*", "0.750", "20.53", "19.38", "57.88", "+23.8%"] in [words[:7] for words in lines]
    assert ["q,", "k,", "v", "2.25", "MiB", "2.25", "MiB", "2.25", "MiB", "–"] in lines
    assert ["logits", "(once)", *["16.00", "MiB"] * 4] in lines


@pytest.mark.parametrize(
    ("memory", "advice"),
    [
        ("1GiB", "It fits without recomputation: --recompute none, with a peak of 127.68 MiB of 1.00 GiB (--memory)."),
        ("120MiB", "take --recompute none --attention fused, with a peak of 100.77 MiB and no matrix product computed"),
        ("70MiB", "take --recompute auto --attention fused, with a peak of 69.94 MiB and 11.9% more FLOPs."),
        ("50MiB", "A smaller micro-batch fits: --training.micro-batch-size 2."),
        ("20MiB", "weights, gradients and optimizer alone take 39.53 MiB: share them over more GPUs"),
    ],
)
def test_the_advice_is_the_cheapest_setting_that_fits(memory, advice, capsys):
    _, out, _ = printed(capsys, "--memory", memory)
    assert advice in " ".join(out.split())


def test_every_setting_that_advice_may_name_is_one_that_train_takes(capsys):
    for flags in [*map(setting_flags, PRESETS.values()), "--recompute auto"]:
        code, out, _ = printed(capsys, "--memory", "1GiB", *flags.split())
        assert (code, " * " in out) == (0, True)


def test_json_is_alone_on_the_output(capsys):
    _, out, err = printed(capsys, "--json", "--recompute-activations")
    data = json.loads(out)
    assert data["attention"]["unfused"]["modes"]["selective"]["saved_bytes"] == 81_555_520
    assert data["own"] == {"attention": "unfused", "setting": "as configured"}
    assert err == ""


def test_a_layout_is_shown_with_what_it_does_not_count(capsys):
    config = ["--config", str(ROOT / "configs/paper-175b.yaml"), "--device", "a100-80gb"]
    layout = "--gpus 64 --tensor-parallel 8 --sequence-parallel --pipeline-parallel 8 --virtual-stages 3"
    code = main(["estimate", *config, *layout.split()])
    out = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "64 GPUs: tensor 8 with sequence, pipeline 8 x 3, data 1" in out
    assert "communication is not counted" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "many"], "error: --gpus: many: must be a whole number of at least 1; --help lists the flags\n"),
        (
            ["--parallel.sharding", "optimizer"],
            "error: --parallel.sharding optimizer: must be parameters, gradients or none\n",
        ),
        (
            ["--gpus", "4", "--parallel.replicas", "3", "--training.global-batch-size", "32"],
            "error: parallel.replicas (3) must divide the 4 ranks: use 1, 2, 4, or start other ranks\n",
        ),
        (["--devise", "h100"], "error: unknown flag --devise; did you mean --device?\n"),
        (
            ["--recompute-modules", "core_atn"],
            "error: --recompute-modules core_atn: must be softmax, dropout, core_attn, layernorm or gelu; "
            "did you mean core_attn?\n",
        ),
    ],
)
def test_a_mistake_is_one_line(arguments, message, capsys):
    assert printed(capsys, *arguments) == (2, "", message)
