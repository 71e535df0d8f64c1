"""Each part runs on a CPU and says what is known in advance."""

import json
import shlex
import signal
import time

import pytest

from benchmarks.arguments import parse
from benchmarks.session import _conditions, wrong_rows


def by_contender(document):
    return {row["contender"]: row for row in document["rows"]}


def test_step_compares_every_setting(runner):
    document = runner.json("step", "--config", runner.config, "--rounds", "4", "--seconds", "0.001")
    rows = by_contender(document)
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len(rows) == 7 + 5 + 5  # dropout and core_attn are selective's equals where there are no scores
    assert all(row["saved_measured"] == row["saved_predicted"] > 0 for row in rows.values())
    firsts = {"unfused none", "fused none", "sdpa none"}
    assert {name for name, row in rows.items() if row["same_bits"] is None} == firsts
    assert all(row["same_bits"] for name, row in rows.items() if name not in firsts)
    assert rows["unfused none"]["ratio"] == {"low": 1, "median": 1, "high": 1}
    for row in rows.values():
        assert len(row["all_step_ms"]) == row["step_ms"]["count"] == 3  # however little time there is
        assert row["tokens_per_s"] == pytest.approx(2 * 32 / row["step_ms"]["median"] * 1e3)
        assert row["mfu"] is None  # no data sheet of a CPU
        assert "peak_bytes" not in row
    assert rows["unfused full"]["hfu"] is None
    assert document["targets"][0]["verdict"] == "not judged: CPU"


def test_environment_is_recorded_and_what_saves_nothing_is_refused(runner, tmp_path):
    config = tmp_path / "no-dropout.yaml"
    config.write_text((tmp_path / "small.yaml").read_text().replace("vocab_size", "dropout_p: 0\n  vocab_size"))
    recompute = ["--recompute", "none", "selective"]
    document = runner.json("step", "--config", str(config), "--attention", "fused", *recompute, "--rounds", "1")
    rows = by_contender(document)
    assert rows["fused none"]["step_ms"]["count"] == 1
    assert rows["fused selective"]["status"] == "refused"
    assert "would save nothing" in rows["fused selective"]["reason"]
    environment = document["environment"]
    assert "python benchmarks/run.py step --device cpu" in environment["command"]
    assert environment["gpu"] is None
    assert set(environment["versions"]) >= {"python", "torch", "triton", "cuda", "numpy", "transformers"}
    assert len(environment["sources"]) == 12
    assert environment["date"].endswith("+00:00")


def test_sweep_sizes(runner):
    document = runner.json("sweep", "--config", runner.config, "--seq", "16", "32", "--micro-batch", "1", "3",
                           "--attention", "fused", "--recompute", "full")  # fmt: skip
    sizes = [(row["sequence"], row["micro_batch"]) for row in document["rows"]]
    assert sizes == [(16, 1), (32, 1), (32, 3)]
    # Per token: two layers' inputs, final layernorm's input and output (4 x 64 x 4 bytes), logits (256 x 4), four
    # numbers of 8 or 2 x 4 bytes: token, target, statistics, and 4 bytes of log-sum-exp. Per sample: its index.
    assert [row["saved_measured"] for row in document["rows"]] == [
        sequence * batch * (4 * 64 * 4 + 256 * 4 + 3 * 8 + 4) + batch * 8 for sequence, batch in sizes
    ]


def test_baselines_have_as_many_weights(runner):
    document = runner.json("baselines", "--config", runner.config, "--attention", "unfused", "--recompute", "none",
                           "--baseline", "plain", "huggingface", "megatron")  # fmt: skip
    rows = by_contender(document)
    baselines = {name for name in rows if name.startswith(("plain", "HF"))}
    ways = ("eager", "sdpa")
    assert baselines == {f"plain {way}{more}" for way in ways for more in ("", ", checkpoint", ", SAC")} | {
        f"HF {way}{more}" for way in ways for more in ("", ", checkpoint")
    }
    assert {rows[name]["parameters"] for name in (*baselines, "unfused none")} == {rows["unfused none"]["parameters"]}
    assert all(rows[name]["status"] == "ok" and rows[name]["tokens_per_s"] > 0 for name in baselines)
    for name in ("plain eager", "plain sdpa", "HF eager", "HF sdpa"):
        assert rows[f"{name}, checkpoint"]["saved_measured"] < rows[name]["saved_measured"]
    assert "saved_measured" not in rows["plain eager, SAC"]  # its cache is invisible to the ledger
    megatron = [row for row in document["rows"] if "megatron" in row["case"]]
    assert [row["status"] for row in megatron] == ["skipped"]  # ours are not measured beside nobody


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
    targets = {target["target"]: target for target in document["targets"]}
    bits = targets.pop("bits: settings that differ from none")
    assert (bits["verdict"], bits["value"]) == ("reached", 0)
    assert {target["verdict"] for target in targets.values()} == {"not measured"}
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# Benchmark: headline, cpu")
    assert "    python benchmarks/run.py headline" in report
    assert "| bits: settings that differ from none | <= 0 | 0 | reached |" in report
    assert "`python benchmarks/run.py headline --json --out headline.json` on an H100 measures them" in report


def test_what_is_wrong_is_told():
    good = {"case": "x", "contender": "K2", "error": 1e-3, "status": "ok"}
    wrong = [
        {**good, "error": float("nan")},
        {**good, "contender": "fused all", "error": None, "same_bits": False},
        {**good, "contender": "fused all", "error": None, "saved_predicted": 8, "saved_measured": 9},
        {**good, "contender": "fused all", "error": None, "different": ["loss"]},
    ]
    others = [{**good, "contender": "SDPA", "error": 1.0}, {**good, "contender": "sdpa all", "different": ["loss"]}]
    assert [row for row, _ in wrong_rows([good, *others, *wrong])] == wrong


def test_what_disturbed_the_times_is_told():
    rows = [{"case": "x", "allocation_retries": count} for count in (0, 3)] + [{"case": "y"}]
    busy = _conditions({"gpu": None, "load": 4.2}, rows)
    assert len(busy) == 2
    assert "load average 4.2" in busy[0]
    assert busy[1].startswith("x: memory ran short 3 times")
    assert _conditions({"gpu": None, "load": 0.1}, rows[:1]) == _conditions({"gpu": {}, "load": 4.2}, []) == []


def test_a_killed_run_goes_on_where_it_was(runner, tmp_path):
    log, out = tmp_path / "step.cases.jsonl", ("--out", str(tmp_path / "step.json"))
    common = ("step", "--device", "cpu", "--rounds", "2", "--seconds", "0.05", "--config", runner.config, *out)
    settings = ("--seq", "16", "32", "--attention", "fused", "--recompute", "none")
    process = runner.process("benchmarks/run.py", *common, *settings)
    deadline = time.monotonic() + 600
    while not (log.exists() and '"rows"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    first = next(json.loads(line) for line in log.read_text().splitlines() if '"rows"' in line)["rows"]
    with log.open("a") as file:
        file.write('\n{"case": "cut off')

    second = runner.json(*common, *settings)
    assert second["rows"][:1] == first  # the same times: not measured again
    assert [row["sequence"] for row in second["rows"]] == [32, 16]  # the config's own length comes first
    assert any("1 of 2 cases are from an earlier start" in note for note in second["notes"])
    assert json.loads((tmp_path / "step.json").read_text())["rows"] == second["rows"]

    other = runner.json(*common, "--attention", "sdpa", "--recompute", "none")
    assert by_contender(other).keys() == {"sdpa none"}  # one setting as well, but not the remembered one
    assert runner.json(*common, *settings, "--rounds", "1")["rows"][0]["step_ms"]["count"] == 1


def test_what_time_does_not_allow_is_listed_with_its_command(runner):
    given = ("--config", runner.config, "--recompute", "none", "full", "--seq", "16", "32", "--micro-batch", "3")
    document = runner.json("step", *given, "--minutes", "0.001")
    assert document["rows"] == []
    keys = [row["case"] for row in document["not_measured"]]
    assert [key.split()[2] for key in keys] == ["s=32", "s=16"]
    for row in document["not_measured"]:
        assert row["why"].startswith("takes up to ")
        words = shlex.split(row["command"])
        assert words[:3] == ["python", "benchmarks/run.py", "step"]
        assert parse(words[2:]).minutes == 7.5
        assert runner(*words[2:], "--list").out == f"{row['case']}\n"
        assert {"--rounds", "--seconds", "--device"} < set(words)
