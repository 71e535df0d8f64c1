"""The command: its table in 80 columns, its JSON, its exit codes."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from megaselect.cli.main import main
from megaselect.data.indexed_dataset import IndexedDatasetWriter
from megaselect.kernels import bias_dropout_residual
from megaselect.report.verify_table import print_report
from megaselect.verification import own_model
from megaselect.verification.report import Check, Outcome, Report, Subject, check, merged

MODEL = ("--model.num-layers", "2", "--model.hidden-size", "32", "--model.num-attention-heads", "4")
SHAPE = (
    "--model.seq-length",
    "16",
    "--training.micro-batch-size",
    "2",
    "--training.global-batch-size",
    "2",
    "--model.vocab-size",
    "256",
)


@pytest.fixture(scope="module")
def verify(tmp_path_factory):
    prefix = tmp_path_factory.mktemp("data") / "tokens"
    writer = IndexedDatasetWriter(prefix, 256)
    writer.add_document(np.random.default_rng(0).integers(0, 256, 2000).tolist())
    writer.finish()
    return lambda *flags: main(["verify", *MODEL, *SHAPE, "--device", "cpu", "--data.prefix", str(prefix), *flags])


def test_the_table_of_a_sound_config(verify, capsys):
    assert verify() == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == [
        "attention",
        "setting",
        "bits",
        "fp64",
        "masks",
        "bytes",
        "again",
        "gradients",
        "saved",
    ]
    assert lines[2].split()[:8] == ["unfused", "none", "✓", "-", "✓", "✓", "✓", "✓"]
    assert lines[-1] == "passed: 91 checks of 18 settings"
    assert "✗" not in out


def break_masks(monkeypatch):
    backward = bias_dropout_residual.TorchFallback.backward

    def shifted(grad_out, sample_index, plane, mask):
        return backward(grad_out, sample_index, plane._replace(site=plane.site + 1), mask)

    monkeypatch.setattr(bias_dropout_residual.TorchFallback, "backward", staticmethod(shifted))


def test_a_failure_is_exit_code_1_with_its_text_below_the_table(verify, capsys, monkeypatch):
    break_masks(monkeypatch)
    assert verify() == 1
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.split()[:1] == ["dropout"]).split()[1:7] == [
        "✗",
        "-",
        "✗",
        "✓",
        "✓",
        "✓",
    ]
    start = lines.index("✗ unfused, dropout: masks failed")
    assert lines[start + 1].startswith("    layers.1.mlp_dropout: the mask that backward used differs from the")
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("FAILED: ")


def test_json(verify, capsys, monkeypatch):
    monkeypatch.setattr(own_model, "attention_choices", lambda config: ["unfused"])
    assert verify("--json", "--batches", "2") == 0
    read = json.loads(capsys.readouterr().out)
    assert read["passed"]
    assert read["subjects"][0]["checks"]["bytes"] == {"outcome": "passed", "detail": ""}
    assert read["notes"][0].startswith("2 batches of 2 samples of 16 tokens")
    break_masks(monkeypatch)
    assert verify("--json") == 1
    assert not json.loads(capsys.readouterr().out)["passed"]


@pytest.mark.parametrize("count", ["0", "-1", "few"])
def test_a_number_of_batches_that_is_none(verify, capsys, count):
    assert verify("--batches", count) == 2
    assert "--batches" in capsys.readouterr().err


def test_what_verify_would_ignore_is_no_flag_of_it(verify, capsys):
    assert verify("--max-steps", "3") == 2
    assert capsys.readouterr().err.startswith("error: --max-steps: megaselect verify does not use it")


REPORT = Report(
    (
        Subject("none", "unfused", (check("same bits", []), Check("masks", Outcome.WARNING, "w " * 50)), figures={}),
        Subject(
            "all", "unfused", (check("same bits", ["one is off", "two"]), Check("masks", Outcome.NOT_CHECKED, "why"))
        ),
        Subject("gelu", "fused", left_out="saves nothing here: reason"),
        Subject("dropout", "fused", left_out="saves nothing here: reason"),
    ),
    ("a note",),
)


def printed(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_report(REPORT, ["same bits", "masks"], Console(file=stream, width=80))
    stream.seek(0)
    return stream.read()


def test_every_outcome_has_its_text():
    lines = printed("utf-8").splitlines()
    failed = lines.index("✗ unfused, all: same bits failed")
    assert lines[failed + 1] == "    one is off (and 1 more)"
    assert "! unfused, none: masks warning" in lines
    assert lines[lines.index("? unfused, all: masks not checked") + 1] == "    why"
    assert "fused, gelu; dropout: left out, saves nothing here: reason" in lines
    assert lines[-2:] == ["a note", "FAILED: 1 of 4 checks of 2 settings"]


def test_an_output_that_takes_no_more_than_ascii_gets_words():
    lines = printed("ascii").splitlines()
    assert lines[2].split() == ["unfused", "none", "ok", "!", "-"]
    assert "NO unfused, all: same bits failed" in lines


def test_a_report_as_text():
    assert str(REPORT).splitlines() == [
        "unfused, none",
        "  passed   same bits",
        f"  warning  masks: {'w ' * 40}w",
        f"             {'w ' * 8}w",
        "unfused, all",
        "  failed       same bits: one is off (and 1 more)",
        "  not checked  masks: why",
        "fused, gelu: saves nothing here: reason",
        "fused, dropout: saves nothing here: reason",
        "a note",
    ]


def test_of_several_batches_the_worst_counts():
    found = [check("bytes", []), check("bytes", ["second"]), Check("bytes", Outcome.NOT_CHECKED, "third")]
    assert merged("bytes", found) == Check("bytes", Outcome.FAILED, "second")


def test_a_model_that_does_not_fit_is_refused_before_it_is_built(capsys):
    config = str(Path(__file__).parents[2] / "configs/paper-1t.yaml")
    assert main(["verify", "--config", config]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: verifying holds at least ")
    assert error.count("\n") == 1
