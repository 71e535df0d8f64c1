"""A comparison is recorded once, offline, by the real SDK in a process of its own; these tests read its runs back."""

import json
import os

import pytest
from comparison_results import CONTEXT
from wandb_records import inspect_all, logged, of_kind, summary

LOG = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from comparison_results import COMPARISON
from megaselect.report.wandb_comparison import log_comparison
"""


def test_one_group_holds_a_run_a_setting_and_one_of_the_whole(recorded):
    assert recorded.stdout == "wandb: offline (no API key); to upload: wandb sync out/wandb/offline-run-*\n"
    assert set(recorded.runs) == {"comparison", "full", "fused none", "none", "sdpa none"}
    heads = {name: of_kind(records, "run")[0] for name, records in recorded.runs.items()}
    assert {head["run_group"] for head in heads.values()} == {"group y"}
    assert {head["project"] for head in heads.values()} == {"project-x"}
    assert {name: head["job_type"] for name, head in heads.items()} == {
        "comparison": "comparison",
        **dict.fromkeys(["none", "full", "fused none", "sdpa none"], "compare"),
    }
    assert heads["none"]["tags"] == ["none", "unfused", "cpu", "float32", "tiny"]
    assert heads["fused none"]["tags"] == ["none", "fused", "cpu", "float32", "tiny"]
    assert heads["comparison"]["tags"] == ["cpu", "float32", "tiny"]
    assert heads["fused none"]["run_id"].startswith("fused_none-")
    assert heads["sdpa none"]["notes"] == "attention dropout 0"


def test_each_run_carries_the_config_of_its_setting(recorded):
    config = of_kind(recorded.runs["sdpa none"], "run")[0]["config"]["update"]
    assert config["model"] == {"num_layers": 2, "attention": "sdpa", "attention_dropout_p": 0.0}
    assert config["recompute"] == {"mode": "none", "modules": ["softmax", "dropout"]}
    assert config["training"] == {"lr": 3e-3}
    assert config["resolved"]["device"] == "cpu, 2 threads"
    assert config["resolved"]["rounds"] == 2
    assert CONTEXT.config["model"]["attention"] == "unfused"  # the comparison itself was not written to


def test_the_history_has_every_step_over_tokens(recorded):
    records = recorded.runs["none"]
    assert {metric["glob_name"]: metric["step_metric"] for metric in of_kind(records, "metric")} == dict.fromkeys(
        ["train/*", "eval/*", "mem/*", "perf/*", "data/*"], "tokens"
    )
    none = {"train/loss_difference": 0, "mem/saved_bytes": 4096, "mem/peak_bytes": 20000}
    assert logged(records) == [
        {"step": 1, "tokens": 1000, "train/loss": 8.5, "train/grad_norm": 1.5, **none},
        {
            "step": 2,
            "tokens": 2000,
            "train/loss": 8.25,
            "train/grad_norm": 1.25,
            "perf/step_ms": 192,  # the median of 256 and 128
            "perf/tokens_per_s": 1000 / 0.192,
            **none,
        },
        {
            "step": 3,  # its loss was not finite
            "tokens": 3000,
            "train/grad_norm": 1.0,
            "perf/step_ms": 384,
            "perf/tokens_per_s": 1000 / 0.384,
            **none,
        },
    ]
    fused = logged(recorded.runs["fused none"])
    assert [row.get("train/loss_difference") for row in fused] == [0, 0.125, None]
    assert {row["mem/peak_bytes"] for row in fused} == {7000}  # it reserved memory: a GPU, where tensors are counted


def test_the_summary_has_the_headline(recorded):
    assert summary(recorded.runs["full"]) == {
        **logged(recorded.runs["full"])[1],
        **logged(recorded.runs["full"])[2],
        "steps": 3,
        "reference": "none",
        "train/rounds_equal": True,
        "train/equal": True,
        "train/final_loss": 8.125,
        "perf/hardware_flops": 4000,
        "perf/model_flops": 3000,
        "perf/median_step_ms": 320,
        "perf/step_ms_q20": 160,
        "perf/step_ms_q80": 640,
        "perf/forward_ms": 80,
        "perf/backward_ms": 320,
        "perf/optimizer_ms": 80,
        "perf/recompute_ms": 64,
        "perf/median_tokens_per_s": 3125,
        "perf/slowdown": 1.875,
        "mem/predicted_bytes": 1024,
        "mem/measured_bytes": 1024,
        "mem/prediction_exact": True,
        "mem/saved_bytes": 3072,
        "mem/peak_allocated_bytes": 5000,
        "mem/peak_rss_bytes": 16000,
        "mem/predicted_peak_bytes": 5000,
        "mem/largest_micro_batch": 32,
    }
    assert "perf/recompute_ms" not in summary(recorded.runs["none"])
    assert summary(recorded.runs["fused none"])["train/equal"] is False
    assert summary(recorded.runs["fused none"])["perf/slowdown"] == 0.5


def test_a_setting_that_failed_is_a_failed_run_that_says_why(recorded):
    failed = recorded.runs["sdpa none"]
    assert summary(failed) == {"failure": "out of memory"}
    assert of_kind(failed, "history") == []
    codes = {name: of_kind(records, "exit")[0].get("exit_code") for name, records in recorded.runs.items()}
    assert codes == {"comparison": 0, "full": 0, "fused none": 0, "none": 0, "sdpa none": 1}


def test_the_whole_holds_table_figures_and_verdict(recorded):
    values = summary(recorded.runs["comparison"])
    assert values["verdict"] == "full saves 3072 bytes."
    (folder,) = (recorded.folder / "out/wandb").glob("offline-run-*-comparison-*")
    assert (values["figures._type"], values["comparison._type"]) == ("html-file", "table-file")
    assert (folder / "files" / values["figures.path"]).read_text() == recorded.html
    table = json.loads((folder / "files" / values["comparison.path"]).read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert list(rows) == ["none", "full", "fused none", "sdpa none"]
    assert rows["full"] == {
        "setting": "full",
        "median step ms": 320,
        "step ms, 20 %": 160,
        "step ms, 80 %": 640,
        "tokens/s": 3125,
        "saved bytes, predicted": 1024,
        "saved bytes, measured": 1024,
        "peak bytes of tensors": 5000,
        "peak bytes": 16000,
        "mfu": None,
        "hfu": None,
        "step time against none": 1.875,
        "saved bytes saved against none": 3072,
        "same bits as": "none",
        "same bits": True,
        "failure": None,
    }
    assert rows["sdpa none"]["failure"] == "out of memory"


@pytest.mark.parametrize(("mode", "variables"), [("disabled", {}), ("auto", {"WANDB_MODE": "disabled"})])
def test_disabled_records_nothing(run_python, tmp_path, mode, variables):
    call = f"log_comparison(COMPARISON, {mode!r}, 'p', 'g', 'out', print)\nprint('wandb' in sys.modules)"
    output = run_python(LOG + call, **variables)
    assert (output.returncode, output.stdout, output.stderr) == (0, "False\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_training_run_of_the_group_overlays_the_comparison(recorded):
    head, ours = of_kind(recorded.training, "run")[0], of_kind(recorded.runs["full"], "run")[0]
    assert (head["project"], head["run_group"]) == (ours["project"], ours["run_group"])
    assert head["display_name"] == "selective"  # as the row of a comparison is called
    assert of_kind(recorded.training, "metric") == of_kind(recorded.runs["full"], "metric")
    training, comparison = logged(recorded.training), logged(recorded.runs["full"])
    shared = {"step", "tokens", "train/loss", "mem/saved_bytes", "perf/step_ms", "perf/tokens_per_s"}
    assert shared <= training[0].keys()
    assert shared <= comparison[1].keys()
    headline = {"perf/median_step_ms", "perf/median_tokens_per_s", "mem/predicted_bytes", "mem/measured_bytes"}
    assert headline <= summary(recorded.training).keys()
    assert headline <= summary(recorded.runs["full"]).keys()


def test_a_comparison_of_any_model_is_drawn_over_steps_where_it_has_no_tokens(tmp_path, run_python):
    code = LOG.replace("COMPARISON", "MODEL_COMPARISON")
    code += "import dataclasses\ncontext = dataclasses.replace(MODEL_COMPARISON.context, config_name='m' * 70)\n"
    code += "comparison = dataclasses.replace(MODEL_COMPARISON, context=context)\n"
    output = run_python(code + "log_comparison(comparison, 'offline', 'p', 'g', 'out', print)")
    assert (output.returncode, output.stderr) == (0, "")
    runs = inspect_all(run_python, list((tmp_path / "out/wandb").glob("offline-run-*")))
    named = {of_kind(records, "run")[0]["display_name"]: records for records in runs}
    assert set(named) == {"none", "full", "torch SAC", "comparison"}
    head = of_kind(named["torch SAC"], "run")[0]
    assert head["tags"] == ["torch SAC", "cpu", "float32", "m" * 64]  # no more than the SDK takes
    assert head["notes"] == "around each layer"
    config = head["config"]["update"]
    assert (config["model"]["model"], config["recompute"]) == ("models:net", {"mode": "torch SAC"})
    assert (config["resolved"]["kind"], config["resolved"]["batch"]) == ("Net", "4x16x32 float32")
    assert {metric["step_metric"] for metric in of_kind(named["full"], "metric")} == {"step"}
    assert [row["step"] for row in logged(named["full"])] == [1, 2, 3]
    assert not any({"tokens", "perf/tokens_per_s"} & row.keys() for row in logged(named["full"]))
    values = summary(named["full"])
    assert (values["mem/measured_bytes"], values["train/equal"], values["perf/slowdown"]) == (1024, True, 1.875)
    assert not {"tokens", "perf/hardware_flops", "mem/predicted_peak_bytes"} & values.keys()
