"""Verdicts on figures that are given, and tables that fit a terminal."""

import pytest

from benchmarks import goals
from benchmarks.report import Report


def step_row(config, contender, median, mfu=None):
    spread = {"q20": median, "median": median, "q80": median, "count": 3}
    row = {"case": f"{config} s=1024", "config": config, "contender": contender, "status": "ok", "reason": ""}
    row |= {"step_ms": spread, "forward_ms": 1234.5, "backward_ms": 2345.6, "optimizer_ms": 11.2}
    row |= {"ratio": {"low": 1, "median": 1, "high": 1}, "ratio_to": "unfused none", "tokens_per_s": 123456.7}
    row |= {"mfu": mfu, "hfu": mfu, "peak_bytes": 70 << 30, "stored_predicted": 1 << 34, "stored_measured": 1 << 34}
    return {**row, "dtype": "bfloat16", "micro_batch": 16, "sequence": 1024, "largest_micro_batch": 128}


def kernel_row(kernel, contender, direction, dropout_p, median, **more):
    spread = {"q20": median, "median": median, "q80": median, "count": 9}
    row = {"case": f"{kernel} s=4096", "kernel": kernel, "contender": contender, "direction": direction}
    row |= {"dropout_p": dropout_p, "ms": spread, "status": "ok", "reason": "", "error": 1.5e-3, "head_size": 64}
    return {**row, "sequence": 4096, "gb_per_s": None, "tflop_per_s": 512.34, "of_matmul": 0.65, **more}


ROWS = [
    {"case": "bits bf16", "contender": "unfused all", "status": "ok", "reason": "", "different": [], "tensors": 29},
    {"case": "bits bf16", "contender": "fused all", "status": "ok", "reason": "", "different": ["loss"], "tensors": 29},
    {"case": "bits bf16", "contender": "sdpa none", "status": "ok", "reason": "", "different": ["loss"], "tensors": 29},
    step_row("gpt-1.3b", "unfused none", 100.0),
    step_row("gpt-1.3b", "unfused selective", 98.0),
    step_row("gpt-1.3b", "unfused full", 140.0),
    step_row("gpt-1.3b", "sdpa none", 80.0),
    step_row("gpt-1.3b", "plain sdpa, checkpoint", 10.0),
    step_row("gpt-1.3b", "fused all", 84.0, 0.51),
    *(kernel_row("K1", "K1", way, 0.1, 1.0, of_copy=share) for way, share in (("forward", 0.9), ("backward", 0.8))),
    *(kernel_row("K1", "torch chain", way, 0.1, 4.0) for way in ("forward", "backward")),
    kernel_row("K2", "K2", "forward", 0.0, 1.0),
    kernel_row("K2", "K2", "forward", 0.1, 1.2),
    kernel_row("K2", "SDPA flash", "forward", 0.1, 1.8),
    {"case": "K2 s=8192", "contender": "SDPA cuDNN", "status": "error", "reason": "no kernel " * 20},
]


def verdicts(on_gpu=True):
    return {goal["goal"]: (goal["measured"], goal["verdict"]) for goal in goals.judge(ROWS, on_gpu)}


@pytest.mark.parametrize(
    ("goal", "measured", "verdict"),
    [
        ("bits: settings that differ from none", "1", "missed by 1"),  # sdpa, which does not repeat itself, apart
        ("gpt-1.3b: unfused selective / none", "0.980x", "reached"),
        ("gpt-1.3b: unfused full / none", "1.400x", "missed by 0.070x"),
        ("gpt-1.3b: fused all / fastest without", "1.050x", "missed by 0.050x"),  # a checkpointed rival apart
        ("gpt-1.3b: fused full / none", "-", "not measured"),
        ("gpt-1.3b: MFU of fused all", "51.0 %", "reached"),
        ("gpt-350m: MFU of fused all", "-", "not measured"),
        ("K1 forward: of copy, worst", "90.0 %", "reached"),
        ("K1 backward: of copy, worst", "80.0 %", "missed by 5.0 %"),
        ("K1: torch chain's time, both ways", "4.000x", "reached"),
        ("K2 d=64 forward: SDPA flash's time", "1.500x", "reached"),
        ("K2 d=64 forward: dropout's cost", "20.0 %", "reached"),
        ("K2 d=128 forward: dropout's cost", "-", "not measured"),
    ],
)
def test_goals(goal, measured, verdict):
    assert verdicts()[goal] == (measured, verdict)


def test_a_cpu_is_judged_by_its_bits_alone():
    judged = verdicts(on_gpu=False)
    assert judged.pop("bits: settings that differ from none") == ("1", "missed by 1")
    assert set(judged.values()) == {("-", "not measured")}


def test_text_fits_eighty_columns_and_loses_nothing():
    versions = {"python": "3.12.3", "torch": "2.11.0+cu130", "cuda": "13.0", "triton": "3.6.0", "numpy": "2.5.2"}
    environment = {"device": "NVIDIA H100", "cpu": "x", "gpu": {"memory_bytes": 1, "power.limit": "700.00 W"}}
    environment |= {"versions": versions, "commit": None, "sources": "0" * 12, "date": "2026-01-01T00:00:00+00:00"}
    environment |= {"command": "python benchmarks/run.py headline"}
    report = Report("headline", environment, {}, ROWS, {"K2 s=16384": "takes up to 28 s"}, [], goals.judge(ROWS, True))
    text = report.text()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "missed by 0.050x" in text
    assert "".join(text.split()).count("nokernel") == 20
    markdown = report.markdown()
    assert "| K2 d=64 forward: dropout's cost | <= 25.0 % | 20.0 % | reached |" in markdown
    assert "power.limit 700.00 W" in markdown
