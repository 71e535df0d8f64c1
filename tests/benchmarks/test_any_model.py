"""The part `any-model` on tiny models: what is measured of each contender, and verdicts on figures that are given."""

import pytest
import torch

from benchmarks import any_model_targets
from benchmarks.allocations import allocated
from benchmarks.any_model_budgets import SHARES, Known, compiled_name
from benchmarks.any_model_shapes import QUICK_SIZES
from benchmarks.any_model_steps import ROUNDING, SAME
from benchmarks.any_model_tables import any_model_tables

ANY_MODEL = ("any-model", "--device", "cpu", "--quick")
OURS = {"selective", "attention", "full"}
STEPS = "gpt2 L=2 h=64 s=32 b=2"
MOST_TOKENS = 3 * QUICK_SIZES.sequence * QUICK_SIZES.batch * torch.int64.itemsize  # the model's, or aliases of them


def quick(runner, *arguments):
    document = runner.json(*ANY_MODEL, "--rounds", "1", *arguments)
    return {row["contender"]: row for row in document["rows"]}, document


def test_steps_of_each_way(runner, tmp_path):
    out = tmp_path / "any-model.md"
    rows, document = quick(runner, "--case", STEPS, "--out", str(out))
    planner = rows.pop("ckptplan 0.5")
    assert planner["status"] == "ok" or "No module named 'ckptplan'" in planner["reason"]
    assert rows.keys() == {"none", "HF full", "SAC", "torch_remat"} | OURS
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["gradients"] for row in rows.values()} == {SAME}
    assert all(rows[name]["same_bits"] for name in OURS)
    for name, row in rows.items():
        assert row["step_ms"]["count"] == 1
        assert row["ratios"].keys() == {"none", "SAC", "HF full"}
        assert row["peak"] > row["held"] > 0
        assert ("saved_a_layer" in row) == (name != "torch_remat")
    # A checkpointed layer keeps its input.
    assert rows["HF full"]["saved_a_layer"] == rows["none"]["activation_bytes"] == QUICK_SIZES.activation_bytes
    saved = {name: row["saved_measured"] for name, row in rows.items() if "saved_measured" in row}
    assert saved["full"] < saved["attention"] < saved["selective"] < saved["SAC"] < saved["none"]
    # The allocator says the same, but for what no ledger sees: one state of the random numbers for each checkpoint.
    state = torch.get_rng_state().nbytes
    for name, states in (("none", 0), ("HF full", QUICK_SIZES.layers), ("SAC", QUICK_SIZES.layers)):
        assert abs(rows[name]["held"] - saved[name] - states * state) <= MOST_TOKENS
    targets = {target["target"]: target for target in document["targets"]}
    assert targets["bits: plans of ours that differ"]["verdict"] == "reached"
    assert targets["gpt2: sbh a layer, attention - SAC"]["verdict"] == "reached"
    assert targets["gpt2: saved, attention / none"]["verdict"] == "reached"
    assert targets["gpt2: attention, an operator"]["verdict"] == "not measured"
    report = out.read_text()
    assert report.startswith("# Benchmark: any-model, cpu")
    assert "python benchmarks/run.py any-model --device cpu" in report
    assert "torch_remat" in report


def test_an_operator_that_follows(runner):
    rows, document = quick(runner, "--case", "llama overhead", "--rounds", "2")
    assert rows.keys() == OURS
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["operators"] > 100
        assert row["forward_us"]["low"] <= row["forward_us"]["median"] <= row["forward_us"]["high"]
    (target,) = [target for target in document["targets"] if target["target"] == "llama: selective, an operator"]
    assert target["value"] == rows["selective"]["forward_us"]["median"]


@pytest.mark.soak
def test_budgets(runner):
    rows, _ = quick(runner, "--budgets", "--shape", "gpt2", "--case", f"{STEPS} budgets")
    compiled = {share: rows[compiled_name(share)] for share in SHARES}
    assert {row["status"] for row in (*compiled.values(), rows["compiled"])} == {"ok"}
    saved = [row["saved_measured"] for row in (rows["compiled"], *compiled.values())]
    assert saved == sorted(saved, reverse=True)  # another graph for each budget
    assert len(set(saved)) == len(saved)
    assert rows["compiled"]["gradients"] == ROUNDING  # the same masks: dropout draws as it does without the compiler
    for share in SHARES:
        ours = rows[f"megaselect as {share:g}"]
        assert ours["saved_measured"] <= compiled[share]["saved_measured"]
        assert ours["gradients"] == SAME


class Slabs(torch.autograd.Function):
    """Forward makes 3 kB and keeps 1 kB; backward makes 4 kB beside it."""

    @staticmethod
    def forward(ctx, x):
        kept = torch.empty(1000, dtype=torch.uint8)
        torch.empty(2000, dtype=torch.uint8)
        ctx.save_for_backward(kept)
        return x.detach()

    @staticmethod
    def backward(ctx, gradient):
        torch.empty(4000, dtype=torch.uint8)
        return gradient


def test_what_the_allocator_gives_out():
    x = torch.zeros((), requires_grad=True)
    x.grad = torch.zeros(())
    held, peak = allocated(lambda: Slabs.apply(x), torch.device("cpu"))
    assert held == 1000
    assert 5000 <= peak < 5100  # and a gradient of the loss


def row(contender, times, **more):
    found = {"case": "gpt2 L=2", "shape": "gpt2", "contender": contender, "status": "ok", "reason": ""}
    return {**found, "all_step_ms": times, "activation_bytes": 100, **more}


ROWS = [
    row("none", [10.0, 10.0, 10.0], saved_measured=1000),
    row("SAC", [10.0, 20.0, 40.0], saved_a_layer=500),
    row("HF full", [10.0, 20.0, 40.0], peak=1000),
    row("attention", [9.0, 19.0, 37.0], saved_measured=451, saved_a_layer=400, peak=800, same_bits=True),
    row("full", [9.0, 9.0, 9.0], same_bits=False),
    {**row("megaselect as 0.5", []), "case": "gpt2 L=2 budgets", "status": "error"},
    {**row("attention", [90.0, 90.0, 90.0]), "case": "gpt2 L=2 compiled", "same_bits": True},
    {**row("attention", []), "case": "gpt2 overhead", "operators": 300, "forward_us": {"median": 12.5}},
]


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        ("bits: plans of ours that differ", "2", "missed by 2"),  # what failed has no bits
        ("gpt2: sbh a layer, attention - SAC", "-1.00", "reached"),
        ("gpt2: saved, attention / none", "0.451x", "missed by 0.001x"),
        ("gpt2: step, attention / SAC", "0.925x (0.910 0.940)", "reached"),  # of the case that has all that is eager
        ("gpt2: step, attention / HF full", "0.925x (0.910 0.940)", "missed by 0.075x"),
        ("gpt2: peak, attention / HF full", "0.800x", "reached"),
        ("gpt2: attention, an operator", "12.5 us", "missed by 0.5 us"),
    ],
)
def test_targets(target, measured, verdict):
    judged = {row["target"]: (row["measured"], row["verdict"]) for row in any_model_targets.judge(ROWS)}
    assert judged[target] == (measured, verdict)


def test_what_is_absent_is_told():
    reason = "ModuleNotFoundError: No module named 'ckptplan'"
    rows = [{"case": STEPS, "contender": "ckptplan 0.5", "status": "skipped", "reason": reason}]
    (table,) = any_model_tables(rows)
    assert table.lines == [["skipped", f"{STEPS}: ckptplan 0.5: {reason}"]]
    assert any_model_targets.judge(rows)[0]["verdict"] == "not measured"


def test_without_a_compiler_a_budget_is_a_share_of_everything():
    known = Known()
    known.counted({"contender": "none", "saved_measured": 1000})
    known.counted({"contender": compiled_name(0.5)})
    assert known.bytes_as(0.5) == 500
    known.counted({"contender": compiled_name(0.5), "saved_measured": 300})
    assert known.bytes_as(0.5) == 300
