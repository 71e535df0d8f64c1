"""megaselect verify on our model: all is well, and what is broken on purpose is found and named."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_batch, make_config

from megaselect.data.sampler import Batch
from megaselect.errors import RecomputeError
from megaselect.kernels import attention_fallback, bias_dropout_residual, softmax_dropout, softmax_dropout_numba
from megaselect.models.gpt import layers
from megaselect.models.gpt.layers import LayerNorm
from megaselect.recomputation.plan import Chunk, RecomputePlan, make_plan
from megaselect.verification import own_model, settings, step
from megaselect.verification.settings import SETTINGS

DROPPING = ["dropout", "selective", "core_attn dropout", "all", "full"]  # what recomputes every mask


def report_of(recompute=None, batches=1, attentions=None, only=tuple(SETTINGS), **more):
    """attentions, only: these attentions and settings, where others would show nothing more."""
    config = make_config(recompute, **{"num_layers": 2} | more)
    drawn = [Batch(*make_batch(config, first_sample=7 + 2 * number)) for number in range(batches)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "SETTINGS", {name: SETTINGS[name] for name in only})
        if attentions:
            patch.setattr(own_model, "attention_choices", lambda config: attentions)
        return own_model.verify_config(config, drawn)


def unfused_report(**more):
    return report_of(attentions=["unfused"], **more)


def each(settings, *checks):
    return {setting: set(checks) for setting in settings}


def failed(report, attention="unfused"):
    """Setting -> names of the checks that failed."""
    names = {}
    for subject, check in report.failures():
        if subject.attention == attention:
            names.setdefault(subject.name, set()).add(check.name)
    return names


def detail(report, attention, setting, name):
    subject = next(s for s in report.subjects if (s.attention, s.name) == (attention, setting))
    return next(check.detail for check in subject.checks if check.name == name)


GOOD = {
    "bf16, two batches": {"dtype": "bf16", "batches": 2, "only": ["none", "selective", "all", "full"]},
    "without dropout": {"dropout_p": 0.0},
    "attention's dropout alone, a window": {"hidden_dropout_p": 0.0, "num_layers": 1, "seq_length": 131},
    "hidden dropout alone, one sample": {"attention_dropout_p": 0.0, "batch": 1},
    "loss in chunks": {"loss_chunk_tokens": 10},
}


@pytest.mark.parametrize("name", GOOD)
def test_every_setting_of_every_attention_passes(name):
    report = report_of(**GOOD[name])
    assert report.passed, str(report)
    checked = [subject for subject in report.subjects if subject.checks]
    assert {check.outcome for subject in checked for check in subject.checks} == {"passed"}
    assert all(subject.figures["saved_bytes"] == subject.figures["predicted_saved_bytes"] for subject in checked)
    attentions = {subject.attention for subject in report.subjects}
    assert attentions == {"unfused", "fused"} | ({"sdpa"} if name.split()[0] in ("without", "hidden") else set())


def test_every_check_is_made_and_the_report_is_json():
    report = report_of(num_layers=3)
    assert report.passed, str(report)
    read = json.loads(json.dumps(report.as_dict()))
    assert read["passed"]
    by_place = {(subject["attention"], subject["name"]): subject for subject in read["subjects"]}
    assert {name for _, name in by_place} == set(SETTINGS)
    made = {name for subject in read["subjects"] for name in subject["checks"]}
    assert made == set(own_model.CHECKS)
    assert by_place["fused", "softmax"]["left_out"].startswith("saves nothing here: fused attention keeps no scores")
    full = by_place["unfused", "full"]
    assert full["rerun"]["megaselect.gelu"] == 3
    assert full["saved_bytes"] < by_place["unfused", "all"]["saved_bytes"] < by_place["fused", "none"]["saved_bytes"]


def assert_own_setting_is_verified(recompute):
    report = unfused_report(recompute=recompute, num_layers=3, only=["none", "full"])
    assert report.passed, str(report)
    kept = {subject.name: subject.figures["saved_bytes"] for subject in report.subjects}
    assert list(kept) == ["none", "full", "the config's own"]
    assert kept["full"] < kept["the config's own"] < kept["none"]


def test_the_config_s_own_setting_is_verified_where_it_is_another():
    assert_own_setting_is_verified({"mode": "full", "layers": "1"})


def test_the_plan_that_auto_makes_is_verified(monkeypatch):
    """Which one it makes is a matter of times, here of a choice: each layer in another way."""
    modules = (frozenset({"gelu", "softmax"}), frozenset(), frozenset({"core_attn", "dropout", "layernorm"}))
    chunks = (Chunk(0, 1, False), Chunk(1, 1, True), Chunk(2, 1, False))
    plan = RecomputePlan("auto", modules, chunks, recompute_embedding_mask=True)
    monkeypatch.setattr(settings, "plan_automatically", lambda config, model: SimpleNamespace(plan=plan))
    assert_own_setting_is_verified({"mode": "auto"})


def test_no_plan_is_verified_twice():
    report = unfused_report(recompute={"mode": "full"}, only=["none", "full", "full sqrt"])
    assert [subject.name for subject in report.subjects] == ["none", "full"]


def test_a_budget_that_no_plan_of_the_config_s_attention_meets_is_an_error():
    with pytest.raises(RecomputeError, match="--recompute auto cannot keep"):
        unfused_report(recompute={"mode": "auto", "memory": "0.1MiB"})


def shifted_by_a_column(keep):
    """A mask function that is off by one column."""
    return lambda *arguments: keep(*arguments).roll(1, -1)


def in_backward_only(monkeypatch, owner, home, name, change):
    """home.name is changed while owner.backward runs."""
    original = owner.backward

    def backward(*args, **kwargs):
        with monkeypatch.context() as inner:
            inner.setattr(home, name, change(getattr(home, name)))
            return original(*args, **kwargs)

    monkeypatch.setattr(owner, "backward", staticmethod(backward) if isinstance(owner, type) else backward)


def test_a_mask_that_backward_rebuilds_off_by_a_column_is_named(monkeypatch):
    in_backward_only(monkeypatch, softmax_dropout.TorchFallback, softmax_dropout, "_keep", shifted_by_a_column)
    report = report_of(kernel_backend="torch")
    assert failed(report) == each([*DROPPING, "core_attn"], "same bits", "masks")
    assert failed(report, "fused") == {}
    fault = detail(report, "unfused", "selective", "masks")
    assert fault.startswith("layers.1.attention.core: the mask that backward used differs from the function in")
    assert "head 0, row" in fault


def test_a_hidden_mask_that_backward_rebuilds_off_by_a_column_is_named(monkeypatch):
    home = bias_dropout_residual
    in_backward_only(monkeypatch, home.TorchFallback, home, "_keep", shifted_by_a_column)
    report = report_of()
    assert failed(report) == failed(report, "fused") == each(DROPPING, "same bits", "masks")
    assert detail(report, "fused", "full", "masks").startswith("layers.1.mlp_dropout: the mask that backward used")


def test_another_seed_in_a_second_run_is_named(monkeypatch):
    """Each call of forward draws another mask, as a random state that is not put back would."""
    original, calls = softmax_dropout_numba.forward, []

    def forward(scores, sample_index, plane, *flags):
        calls.append(plane)
        return original(scores, sample_index, plane._replace(seed=plane.seed + len(calls)), *flags)

    monkeypatch.setattr(softmax_dropout_numba, "forward", forward)
    report = unfused_report(only=["none", "full"])
    assert "masks" in failed(report)["full"]
    assert detail(report, "unfused", "none", "same bits").startswith(
        "none does not repeat itself: loss differs in 1 of"
    )
    fault = detail(report, "unfused", "full", "masks")
    assert fault.startswith("layers.0.attention.core: the mask that forward used differs")


def test_a_mask_that_is_wrong_in_every_mode_alike_is_named(monkeypatch):
    """Fused attention makes its mask anew in every mode: bits cannot show it, values and fp64 do."""
    in_backward_only(monkeypatch, attention_fallback, attention_fallback, "_keep", shifted_by_a_column)
    report = report_of()
    assert failed(report) == {}
    broken = each([*DROPPING, "layernorm", "gelu"], "masks") | each(["none"], "masks", "near fp64")
    assert failed(report, "fused") == broken
    fault = detail(report, "fused", "none", "near fp64")
    assert fault.startswith("token_embedding.weight: relative error ")
    assert "at most" in fault


def test_statistics_of_another_sample_are_found_where_probs_are_rebuilt(monkeypatch):
    original = softmax_dropout_numba.backward

    def backward(*args, row_max, **kwargs):
        return original(*args, row_max=row_max.flip(0) if row_max.numel() else row_max, **kwargs)

    monkeypatch.setattr(softmax_dropout_numba, "backward", backward)
    report = unfused_report()
    recomputing = ["softmax", "core_attn", "selective", "core_attn dropout", "all", "full"]
    assert failed(report) == each(recomputing, "same bits")
    fault = detail(report, "unfused", "softmax", "same bits")
    assert fault.startswith("token_embedding.weight differs in ")
    assert "of the largest)" in fault


class Hiding(torch.autograd.Function):
    """GELU that holds its input where autograd does not see it."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return torch.ops.megaselect.gelu(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.ops.megaselect.gelu_backward(grad, ctx.x)


def test_a_tensor_that_is_not_saved_where_it_is_predicted_is_named(monkeypatch):
    monkeypatch.setattr(layers, "gelu", Hiding.apply)
    report = unfused_report()
    assert failed(report) == each(SETTINGS.keys() - {"full", "full sqrt"}, "bytes")  # in full there is none to keep
    size = 21 * 2 * 80 * 4
    assert detail(report, "unfused", "none", "bytes").startswith(
        f"layers.0, fc1 output: {size:,} bytes predicted, 0 measured"
    )


@pytest.mark.parametrize("setting", ["selective", "layernorm", "gelu", "core_attn", "full"])
def test_a_mode_that_does_nothing_is_named(setting, monkeypatch):
    """Whatever is asked for, the model keeps everything: the same bits, and no memory saved."""
    apply, none = step.apply_recompute, make_plan(SETTINGS["none"], 2)
    asked = make_plan(SETTINGS[setting], 2)
    monkeypatch.setattr(step, "apply_recompute", lambda model, plan: apply(model, none if plan == asked else plan))
    report = unfused_report(only=["none", "dropout", setting])
    assert failed(report) == {setting: {"bytes", "runs again"}}
    expected = {
        "selective": "attention's mask inside backward ran again 0 times in backward, not 2",
        "layernorm": "megaselect.layer_norm ran again 0 times in backward, not 4",
        "gelu": "megaselect.gelu ran again 0 times in backward, not 2",
        "core_attn": "aten.baddbmm ran again 0 times in backward, not 2",
        "full": "aten.addmm ran again 0 times in backward, not 4",
    }
    assert detail(report, "unfused", setting, "runs again").startswith(expected[setting])


def test_a_mode_that_recomputes_more_than_it_says_is_named(monkeypatch):
    apply, full = step.apply_recompute, make_plan(SETTINGS["full"], 2)
    asked = make_plan(SETTINGS["all"], 2)
    monkeypatch.setattr(step, "apply_recompute", lambda model, plan: apply(model, full if plan == asked else plan))
    assert failed(unfused_report(only=["none", "gelu", "all"])) == {"all": {"bytes", "runs again"}}


def test_parameters_without_a_gradient_are_named(monkeypatch):
    forward = LayerNorm.forward

    def detached(self, x):
        self.weight.requires_grad_(False)
        out = forward(self, x)
        self.weight.requires_grad_(True)
        return out

    monkeypatch.setattr(LayerNorm, "forward", detached)
    report = unfused_report(only=["none", "all"])
    assert failed(report) == each(["none", "all"], "gradients")
    fault = detail(report, "unfused", "none", "gradients")
    assert fault == "layers.0.ln1.weight is trainable and has no gradient (and 2 more)"


def test_where_none_does_not_repeat_itself_nothing_is_compared_with_it(monkeypatch):
    gelu, factor = layers.gelu, itertools.count(1)
    monkeypatch.setattr(layers, "gelu", lambda x: gelu(x) * next(factor))
    report = unfused_report(only=["none", "softmax", "all"])
    assert detail(report, "unfused", "none", "same bits").startswith("none does not repeat itself")
    outcomes = {
        (subject.name, str(check.outcome))
        for subject in report.subjects
        for check in subject.checks
        if check.name == "same bits" and subject.name != "none"
    }
    assert {outcome for _, outcome in outcomes} == {"not checked"}


def test_the_worst_of_several_batches_is_reported(monkeypatch):
    original = softmax_dropout_numba.backward

    def backward(grad_dropped, delta, sample_index, plane, *, row_max, **kwargs):
        second_batch = bool((sample_index >= 9).any())
        statistics = row_max.flip(0) if second_batch and row_max.numel() else row_max
        return original(grad_dropped, delta, sample_index, plane, row_max=statistics, **kwargs)

    monkeypatch.setattr(softmax_dropout_numba, "backward", backward)
    assert failed(unfused_report(batches=1, only=["none", "softmax"])) == {}
    assert failed(unfused_report(batches=2, only=["none", "softmax"])) == {"softmax": {"same bits"}}
