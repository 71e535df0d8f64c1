"""Verdicts on figures that are given, and tables that fit a terminal."""

import shlex

import pytest

from benchmarks import targets
from benchmarks.report import Report


def step_row(config, contender, median, mfu=None):
    spread = {"q20": median, "median": median, "q80": median, "count": 3}
    row = {"case": f"{config} s=1024", "config": config, "contender": contender, "status": "ok", "reason": ""}
    row |= {
        "step_ms": spread,
        "all_step_ms": [median, median, median],
        "forward_ms": 1234.5,
        "backward_ms": 2345.6,
        "optimizer_ms": 11.2,
    }
    row |= {"ratio": {"low": 1, "median": 1, "high": 1}, "ratio_to": "unfused none", "tokens_per_s": 123456.7}
    row |= {"mfu": mfu, "hfu": mfu, "peak_bytes": 70 << 30, "saved_predicted": 1 << 34, "saved_measured": 1 << 34}
    return {**row, "dtype": "bfloat16", "micro_batch": 16, "sequence": 1024}


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
    {**step_row("gpt-1.3b", "fused all", 40.0, 0.55), "case": "gpt-1.3b s=512"},  # alone: compared with nothing
    {**step_row("gpt-1.3b", "unfused none", 50.0), "case": "gpt-1.3b s=2048"},
    {**step_row("gpt-1.3b", "unfused selective", 48.0), "case": "gpt-1.3b s=2048"},
    {
        "case": "largest batch, fused, gpt-1.3b s=2048",
        "contender": "fused all",
        "status": "ok",
        "reason": "",
        "largest_micro_batch": 48,
        "beyond": "memory is short",
    },
    *(kernel_row("K1", "K1", way, 0.1, 1.0, of_copy=share) for way, share in (("forward", 0.9), ("backward", 0.8))),
    *(kernel_row("K1", "torch chain", way, 0.1, 4.0) for way in ("forward", "backward")),
    kernel_row("K2", "K2", "forward", 0.0, 1.0),
    kernel_row("K2", "K2", "forward", 0.1, 1.2),
    kernel_row("K2", "SDPA flash", "forward", 0.1, 1.8),
    kernel_row("K2", "SDPA flash, determ.", "backward", 0.1, 1.8),
    {**kernel_row("K1", "K1", "forward", 0.1, 1.0, of_copy=0.95), "sequence": 8192},  # its chain's backward has failed
    {**kernel_row("K1", "K1", "backward", 0.1, 1.0, of_copy=0.95), "sequence": 8192},
    {**kernel_row("K1", "torch chain", "forward", 0.1, 4.0), "sequence": 8192},
    {"case": "K2 s=8192", "contender": "SDPA cuDNN", "status": "error", "reason": "no kernel " * 20},
]


def verdicts(on_gpu=True):
    return {target["target"]: (target["measured"], target["verdict"]) for target in targets.judge(ROWS, on_gpu)}


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        ("bits: settings that differ from none", "1", "missed by 1"),  # sdpa, which does not repeat itself, apart
        ("gpt-1.3b: unfused selective / none", "0.980x", "reached"),
        ("gpt-1.3b: unfused full / none", "1.400x", "missed by 0.070x"),
        ("gpt-1.3b: fused all / fastest without", "1.050x", "missed by 0.050x"),  # a checkpointed baseline apart
        ("gpt-1.3b: fused full / none", "-", "not measured"),
        ("gpt2-124m: fused all / fastest without", "-", "not measured"),  # listed though no row is there
        ("gpt-1.3b: MFU of fused all", "55.0 %", "reached"),
        ("gpt-350m: MFU of fused all", "-", "not measured"),
        ("K1 forward: of copy, worst", "90.0 %", "reached"),
        ("K1 backward: of copy, worst", "80.0 %", "missed by 5.0 %"),
        ("K1: torch chain's time, both ways", "4.000x", "reached"),
        ("K2 d=64 forward: flash's time", "1.500x", "reached"),
        ("K2 d=64 forward: dropout's cost", "20.0 %", "reached"),
        ("K2 d=128 forward: dropout's cost", "-", "not measured"),
    ],
)
def test_targets(target, measured, verdict):
    assert verdicts()[target] == (measured, verdict)


def test_a_ratio_is_that_of_the_typical_round():
    first, second = step_row("tiny", "unfused none", 30.0), step_row("tiny", "unfused selective", 20.0)
    first["all_step_ms"], second["all_step_ms"] = [10.0, 30.0, 50.0], [11.0, 20.0, 60.0]
    judged = {target["target"]: target["value"] for target in targets.judge([first, second], True)}
    assert judged["tiny: unfused selective / none"] == pytest.approx(1.1)  # and of the medians: 0.667


def test_a_cpu_is_judged_by_its_bits_alone():
    judged = verdicts(on_gpu=False)
    assert judged.pop("bits: settings that differ from none") == ("1", "missed by 1")
    assert judged["gpt-1.3b: unfused full / none"] == ("1.400x", "not judged: CPU")
    assert {verdict for _, verdict in judged.values()} == {"not judged: CPU", "not measured"}


def report():
    versions = {"python": "3.12.3", "torch": "2.11.0+cu130", "cuda": "13.0", "triton": "3.6.0", "numpy": "2.5.2"}
    gpu = {"memory_bytes": 1, "SMs": 132, "driver_version": "580.82.07", "power.limit": "700.00 W"}
    gpu |= {"clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz", "clocks.mem": "2619 MHz", "temperature.gpu": "33"}
    environment = {"device": "NVIDIA H100", "cpu": "x", "gpu": gpu}
    environment |= {"versions": versions, "commit": None, "sources": "0" * 12, "date": "2026-01-01T00:00:00+00:00"}
    environment |= {"command": "python benchmarks/run.py headline"}
    key = "step unfused gpt2-124m s=16384 own b=16 bfloat16 compiled [17 settings]"
    missing = {"case": key, "why": "takes up to 28 s, and 12 s were left"}
    missing["command"] = shlex.join(["python", "benchmarks/run.py", "step", "--seq", "16384", "--case", key])
    notes = ["a note of more than eighty columns, " * 3]
    return Report("headline", environment, {}, ROWS, [missing], notes, targets.judge(ROWS, True))


def test_text_fits_eighty_columns_and_loses_nothing():
    text = report().text()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert "missed by 0.050x" in text
    assert "".join(text.split()).count("nokernel") == 20
    assert ["fused", "all", "48", "memory", "is", "short"] in [line.split() for line in text.splitlines()]
    command = text[text.index("    python ") : text.index("[17 settings]'") + len("[17 settings]'")]
    assert shlex.split(command.replace("\\\n", "")) == shlex.split(report().not_measured[0]["command"])


def test_markdown():
    markdown = report().markdown()
    assert "| K2 d=64 forward: dropout's cost | <= 25.0 % | 20.0 % | reached |" in markdown
    assert "power.limit 700.00 W" in markdown
    assert f": takes up to 28 s, and 12 s were left: `{report().not_measured[0]['command']}`" in markdown
