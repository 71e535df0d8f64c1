"""Each part runs on a CPU and says what is known in advance."""

import json

import pytest


def by_contender(document):
    return {row["contender"]: row for row in document["rows"]}


def test_step_compares_every_setting(runner):
    document = runner.json("step", "--config", runner.config)
    rows = by_contender(document)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len(rows) == 7 + 5 + 5  # dropout and core_attn are selective's equals where there are no scores
    assert all(row["stored_measured"] == row["stored_predicted"] > 0 for row in rows.values())
    firsts = {"unfused none", "fused none", "sdpa none"}
    assert {name for name, row in rows.items() if row["same_bits"] is None} == firsts
    assert all(row["same_bits"] for name, row in rows.items() if name not in firsts)
    assert rows["unfused none"]["ratio"] == {"low": 1, "median": 1, "high": 1}
    for row in rows.values():
        assert len(row["all_step_ms"]) == row["step_ms"]["count"] == 3  # at least three rounds
        assert row["tokens_per_s"] == pytest.approx(2 * 32 / row["step_ms"]["median"] * 1e3)
        assert row["mfu"] is None  # no data sheet of a CPU
        assert "peak_bytes" not in row
    assert rows["unfused full"]["hfu"] is None


def test_environment_is_recorded(runner):
    document = runner.json("step", "--config", runner.config, "--attention", "fused", "--recompute", "none", "all")
    assert [row["contender"] for row in document["rows"]] == ["fused none", "fused all"]
    environment = document["environment"]
    assert environment["command"].startswith("python benchmarks/run.py step --config ")
    assert environment["gpu"] is None
    assert set(environment["versions"]) >= {"python", "torch", "triton", "cuda", "numpy"}
    assert len(environment["sources"]) == 12
    assert environment["date"].endswith("+00:00")


def test_a_setting_that_saves_nothing_is_refused_not_timed(runner, tmp_path):
    config = tmp_path / "no-dropout.yaml"
    config.write_text((tmp_path / "small.yaml").read_text().replace("vocab_size", "dropout_p: 0\n  vocab_size"))
    recompute = ["--recompute", "none", "selective"]
    document = runner.json("step", "--config", str(config), "--attention", "fused", *recompute)
    refused = by_contender(document)["fused selective"]
    assert refused["status"] == "refused"
    assert "would save nothing" in refused["reason"]


def test_sweep_sizes(runner):
    document = runner.json("sweep", "--config", runner.config, "--seq", "16", "32", "--micro-batch", "1", "3",
                           "--attention", "fused", "--recompute", "full")  # fmt: skip
    sizes = [(row["sequence"], row["micro_batch"]) for row in document["rows"]]
    assert sizes == [(16, 1), (32, 1), (32, 3)]
    # Per token: two layers' inputs, final layernorm's input and output (4 x 64 x 4 bytes), logits (256 x 4), four
    # numbers of 8 or 2 x 4 bytes: token, target, statistics, and 4 bytes of log-sum-exp. Per sample: its index.
    assert [row["stored_measured"] for row in document["rows"]] == [
        sequence * batch * (4 * 64 * 4 + 256 * 4 + 3 * 8 + 4) + batch * 8 for sequence, batch in sizes
    ]


def test_rivals_have_as_many_weights(runner):
    document = runner.json("rivals", "--config", runner.config, "--attention", "unfused", "--recompute", "none",
                           "--rival", "plain", "huggingface", "megatron")  # fmt: skip
    rows = by_contender(document)
    rivals = {name for name in rows if name.startswith(("plain", "HF"))}
    assert {name for name in rivals if "," not in name} == {"plain eager", "plain sdpa", "HF eager", "HF sdpa"}
    assert {rows[name]["parameters"] for name in (*rivals, "unfused none")} == {rows["unfused none"]["parameters"]}
    assert all(rows[name]["status"] == "ok" for name in rivals)
    assert rows["plain eager, checkpoint"]["stored_measured"] < rows["plain eager"]["stored_measured"]
    assert "stored_measured" not in rows["plain eager, SAC"]  # its cache is invisible to the ledger
    assert rows["megatron"]["status"] == "skipped"


def test_kernels_stand_beside_their_errors_and_ceilings(runner):
    document = runner.json("kernels", "--seq", "32", "--head-size", "16", "--dropout", "0", "0.1")
    rows = document["rows"]
    assert {row["kernel"] for row in rows} == {"K1", "K2", "bdrl", "layernorm"}
    ours = [row for row in rows if row["contender"] in ("K1", "K2", "Megaselect")]
    directions = {(row["kernel"], row["direction"], row["dropout_p"]) for row in ours}
    assert len(directions) == len(ours) == 3 * 2 * 2 + 2
    assert all(row["error"] < 1e-6 and row["times_ours"] == 1 for row in ours)
    ceilings = [row for row in rows if row["contender"] in ("copy", "matmul")]
    assert [row["of_matmul"] if row["contender"] == "matmul" else row["of_copy"] for row in ceilings] == [1] * 4
    others = [row for row in rows if row["contender"] in ("torch chain", "torch eager", "SDPA")]
    assert all((row["error"] is None) == (row["dropout_p"] > 0) for row in others)
    fused = next(row for row in ours if row["kernel"] == "K2" and row["direction"] == "forward")
    flops = 2 * fused["batch"] * fused["heads"] * 32**2 * 16
    assert fused["tflop_per_s"] == pytest.approx(flops / fused["ms"]["median"] / 1e9)


def test_headline_judges_bits(runner, tmp_path):
    document = runner.json("headline", "--out", str(tmp_path / "report.md"), "--filter", "bits fp32")
    goals = {goal["goal"]: goal for goal in document["goals"]}
    bits = goals.pop("bits: settings that differ from none")
    assert (bits["verdict"], bits["value"]) == ("reached", 0)
    assert {goal["verdict"] for goal in goals.values()} == {"not measured"}
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Benchmark: headline, cpu")
    assert "    python benchmarks/run.py headline" in report
    assert "| bits: settings that differ from none | <= 0 | 0 | reached |" in report


def test_a_second_start_measures_what_is_missing(runner, tmp_path):
    out = ("--out", str(tmp_path / "step.json"))
    settings = ("--attention", "fused", "--recompute", "none")
    first = runner.json("step", "--config", runner.config, "--seq", "16", *settings, *out)
    log = tmp_path / "step.cases.jsonl"
    with log.open("a") as file:
        file.write('{"case": "cut off')
    second = runner.json("step", "--config", runner.config, "--seq", "16", "32", *settings, *out)
    assert second["rows"][: len(first["rows"])] == first["rows"]  # the same times: not measured again
    assert [row["sequence"] for row in second["rows"]] == [16, 32]
    assert any("1 of 2 cases are from an earlier start" in note for note in second["notes"])
    assert json.loads((tmp_path / "step.json").read_text())["rows"] == second["rows"]


def test_memory_growth_still_runs(runner):
    done = runner("--config", runner.config, "--steps", "4", "--device", "cpu", script="memory_growth.py")
    assert done.returncode == 0, done.stderr
    assert "unfused selective: " in done.stdout
    assert "not judged below 40 steps" in done.stdout
