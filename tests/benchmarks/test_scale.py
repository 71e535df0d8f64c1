"""The part `scale` on two ranks of a tiny model; verdicts on figures that are given."""

import pytest

from benchmarks import scale_targets
from benchmarks.rank_processes import run_on_ranks
from megaselect.errors import RankError

TRAINERS = [
    "none",
    "none, native",
    "none, gradients",
    "none, replicated",
    "none, each alone",
    "none, one rank",
    "all",
    "plain",
    "plain, checkpoint",
    "plain, SAC",
]


@pytest.mark.soak
def test_two_ranks(runner, tmp_path):
    out = tmp_path / "scale.md"
    document = runner.json("scale", "--config", runner.config, "--rounds", "3", "--out", str(out))
    rows = document["rows"]
    assert {row["status"] for row in rows} == {"ok"}
    timed = {row["contender"]: row for row in rows if "rank_step_ms" in row}
    assert list(timed) == TRAINERS
    for row in timed.values():
        assert len(row["all_rank_step_ms"]) == row["rank_step_ms"]["count"] == 3
        assert 0 < row["forward_ms"] < row["rank_step_ms"]["median"] * 3
        assert row["processor_ms"] > 0
    ours = [timed[name] for name in ("none", "none, native", "none, gradients", "none, replicated", "all")]
    assert all(row["saved_measured"] == row["saved_predicted"] > 0 for row in ours)
    assert timed["plain, checkpoint"]["saved_measured"] < timed["all"]["saved_measured"]
    sent = {(row["ranks"], row["contender"]): row["sent_bytes"] for row in rows if "sent_bytes" in row}
    shared = {(2, name) for name in ("parameters", "gradients", "none")} | {(4, "parameters"), (4, "gradients")}
    assert sent.keys() == {(ranks, f"{name} {way}") for ranks, name in shared for way in ("ordered", "native")}
    for ranks, name in shared:
        assert sent[ranks, f"{name} ordered"] == sent[ranks, f"{name} native"] > 0
    judged = {target["target"]: target for target in document["targets"]}
    assert {target["verdict"] for name, target in judged.items() if name.startswith("more bytes")} == {"reached"}
    assert all(target["value"] is not None for target in judged.values())
    report = out.read_text()
    assert report.startswith("# Benchmark: scale, cpu")
    assert f"not measured on GPUs: `{scale_targets.COMMAND}`" in report


def step_row(contender, times, saved=None):
    row = {"case": "step", "contender": contender, "status": "ok", "all_rank_step_ms": times, "saved_measured": saved}
    return {**row, "rank_step_ms": {}}


def sent_row(sharding, reduction, size, replicas=1):
    row = {"case": "bytes", "contender": f"{sharding} {reduction}", "status": "ok", "sent_bytes": size}
    return {**row, "sharding": sharding, "reduction": reduction, "replicas": replicas}


ROWS = [
    step_row("none", [10.0, 20.0, 40.0]),
    step_row("none, native", [10.0, 10.0, 40.0]),
    step_row("none, one rank", [8.0, 16.0, 39.0]),
    step_row("all", [12.0, 24.0, 48.0], 40),
    step_row("plain", [20.0, 20.0, 40.0], 100),
    step_row("plain, checkpoint", [20.0, 24.0, 40.0]),
    sent_row("parameters", "ordered", 100),
    sent_row("parameters", "native", 100),
    sent_row("gradients", "ordered", 108),
    sent_row("gradients", "native", 100),
    sent_row("gradients", "native", 90, 2),
    {"case": "step", "contender": "plain, SAC", "status": "error", "reason": "no"},
]


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        ("step: none / none, native", "1.000x (1.000 1.600)", "reached"),  # the typical round's, not 20 / 10
        ("step: none / plain", "1.000x (0.700 1.000)", "missed by 0.070x"),
        ("step: all / plain, checkpoint", "1.000x (0.760 1.120)", "missed by 0.200x"),
        ("step: all / plain, SAC", "-", "not measured"),
        ("step: none, one rank / none", "0.800x (0.800 0.905)", "missed by 0.100x"),
        ("kept for backward: all / plain", "0.400x", "reached"),
        ("more bytes: parameters", "0", "reached"),
        ("more bytes: gradients", "8", "missed by 8"),
        ("more bytes: none", "-", "not measured"),
        ("more bytes: gradients, 2 replicas", "-", "not measured"),
    ],
)
def test_targets(target, measured, verdict):
    judged = {row["target"]: (row["measured"], row["verdict"]) for row in scale_targets.judge(ROWS, on_gpu=False)}
    assert judged[target] == (measured, verdict)


def test_a_rank_that_fails_is_named():
    with pytest.raises(RankError, match=r"^rank \d: TypeError: "):
        run_on_ranks(2, int, 120, no_such_keyword=1)
