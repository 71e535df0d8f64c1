"""megaselect.verify on models of others: right checkpoints of every make pass, and each classic mistake is named."""

import functools

import pytest
import torch
from checkpointed_models import (
    SELECTIVE,
    OwnCheckpoint,
    OwnScaled,
    OwnWithoutState,
    OwnWithoutWeights,
    Stack,
    make_input,
    torch_checkpoint,
    with_parameters,
    wrapped,
)
from reports import details, failed, outcomes
from tiny_models import build_unchecked, make_batch, make_config
from torch import nn
from torch.utils.checkpoint import checkpoint

import megaselect
from megaselect.errors import VerificationError

KEEPS_NOTHING = torch_checkpoint(use_reentrant=False)


RIGHT = {
    "non-reentrant": lambda: Stack(KEEPS_NOTHING),
    "reentrant": lambda: Stack(torch_checkpoint(use_reentrant=True)),
    "imported by name": lambda: Stack(lambda layer, x: checkpoint(layer, x, use_reentrant=False)),
    "checkpoint_wrapper": wrapped,
}


@pytest.mark.parametrize("kind", RIGHT)
def test_right_checkpoints_pass_against_the_same_model_without(kind):
    report = megaselect.verify(RIGHT[kind](), make_input())
    assert set(outcomes(report).values()) == {"passed"}, str(report)
    assert "same bits" in outcomes(report)
    assert details(report)["random numbers"] == "3 drawn again, each the same"
    assert report.subjects[0].figures["rerun_flops"] == 3 * 2 * (2 * 12 * 8 * 24)
    figures = report.subjects[0].figures
    assert 0 < figures["saved_bytes"] < figures["saved_bytes_without_checkpointing"]


def test_a_right_function_of_one_s_own_passes_against_differences():
    report = megaselect.verify(Stack(with_parameters(OwnCheckpoint)), make_input())
    assert report.passed
    assert "same bits" not in outcomes(report)
    assert outcomes(report)["differences"] == "passed"


def test_a_mixture_is_held_against_both():
    def run(layer, x):
        return with_parameters(OwnCheckpoint)(layer, KEEPS_NOTHING(layer, x))

    report = megaselect.verify(Stack(run), make_input())
    assert report.passed
    assert outcomes(report)["same bits"] == outcomes(report)["differences"] == "passed"
    assert "3 regions of torch's checkpoint were switched off" in report.notes[0]


@pytest.mark.parametrize("reentrant", [False, True])
def test_masks_of_a_second_run_that_draws_anew(reentrant):
    model = Stack(torch_checkpoint(use_reentrant=reentrant, preserve_rng_state=False))
    report = megaselect.verify(model, make_input())
    assert failed(report) == {"random numbers", "same bits", "second run"}
    assert "layers.2.dropout: aten.bernoulli_ in backward draws other numbers" in details(report)["random numbers"]
    assert "embed.weight differs in 64 of 64 elements" in details(report)["same bits"]


def test_a_function_without_the_weights_gradients():
    report = megaselect.verify(Stack(lambda layer, x: OwnWithoutWeights.apply(layer, x)), make_input())
    assert failed(report) == {"gradients", "differences"}
    assert details(report)["gradients"].startswith("layers.0.fc1.weight, layers.0.fc1.bias, layers.0.fc2.weight")
    assert details(report)["differences"].startswith("layers.0.fc1.weight: the derivative is 0 by backward")


def test_a_function_that_draws_anew():
    report = megaselect.verify(Stack(with_parameters(OwnWithoutState)), make_input())
    assert failed(report) == {"random numbers", "differences", "second run"}
    assert "layers.2.dropout" in details(report)["random numbers"]


def test_a_gradient_that_is_off_by_a_thousandth_is_found_by_name():
    report = megaselect.verify(Stack(with_parameters(OwnScaled)), make_input())
    assert failed(report) == {"differences"}
    assert details(report)["differences"].startswith("layers.0.fc1.weight: the derivative is")
    assert "(and 3 more)" in details(report)["differences"]  # the first weights of two more layers, and all


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
def test_a_reentrant_checkpoint_of_an_input_without_gradients():
    report = megaselect.verify(Stack(torch_checkpoint(use_reentrant=True), embed=False), make_input())
    assert failed(report) == {"gradients", "recomputes"}
    assert "without a gradient, which is there without checkpointing" in details(report)["gradients"]
    assert details(report)["recomputes"].startswith("it recomputes nothing: 3 checkpointed regions ran in forward")


def test_running_statistics_that_are_updated_twice():
    report = megaselect.verify(Stack(KEEPS_NOTHING, norm=True), make_input())
    assert failed(report) == {"state"}
    assert details(report)["state"].startswith("layers.0.norm.running_mean differs in 8 of 8 elements")


def test_a_selective_checkpoint_whose_cache_is_as_large_as_what_it_saves():
    model = Stack(torch_checkpoint(use_reentrant=False, context_fn=SELECTIVE))
    report = megaselect.verify(model, make_input())
    assert failed(report) == {"recomputes"}
    assert details(report)["recomputes"].startswith("it saves nothing: 6,528 bytes saved")


def test_wrappers_that_run_nothing_again():
    model = wrapped()
    for layer in model.layers:
        layer.forward = layer._checkpoint_wrapped_module.forward
    report = megaselect.verify(model, make_input())
    assert failed(report) == {"recomputes"}
    assert details(report)["recomputes"] == "it recomputes nothing: 3 modules are in a checkpoint_wrapper"


def test_a_model_without_checkpoints_is_no_failure_and_says_so():
    report = megaselect.verify(Stack(lambda layer, x: layer(x)), make_input())
    assert report.passed
    assert outcomes(report)["recomputes"] == "warning"


def test_an_error_in_backward_is_a_failure():
    class Changing(nn.Module):
        calls = 0

        def region(self, x):
            self.calls += 1
            return x.sin() if self.calls > 1 else x[:3].sin()

        def forward(self, x):
            return KEEPS_NOTHING(self.region, x).sum()

    report = megaselect.verify(Changing(), make_input().requires_grad_())
    assert failed(report) == {"backward"}
    assert "CheckpointError" in details(report)["backward"]


def test_a_module_that_casts_to_fp32_is_not_judged_by_differences():
    class Narrow(OwnCheckpoint):
        @staticmethod
        def forward(ctx, layer, x, *parameters):
            return OwnCheckpoint.forward(ctx, layer, x).to(torch.bfloat16).to(x.dtype)

    report = megaselect.verify(Stack(with_parameters(Narrow)), make_input())
    assert outcomes(report)["differences"] == "not checked"
    assert "not smooth" in details(report)["differences"]


def test_everything_is_as_it_was_before():
    model = Stack(KEEPS_NOTHING, norm=True)
    x = make_input().requires_grad_()
    model(x).backward()
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    kept = {name: value.clone() for name, value in (before | dict(model.named_buffers())).items()}
    state, weights = torch.get_rng_state(), {name: value.clone() for name, value in model.named_parameters()}
    input_gradient = x.grad.clone()
    megaselect.verify(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x.grad, input_gradient)
    assert all(parameter.grad is before[name] for name, parameter in model.named_parameters())
    after = before | dict(model.named_buffers())
    assert [name for name, value in kept.items() if not torch.equal(after[name], value)] == []
    assert [name for name, value in model.named_parameters() if not torch.equal(weights[name], value)] == []
    assert model.training


def test_batches_and_losses_of_every_form():
    layer = nn.Linear(8, 3)
    x = make_input()
    assert megaselect.verify(layer, (x,), loss_fn=torch.sum).passed
    assert megaselect.verify(layer, {"input": x}, loss_fn=torch.mean).passed
    with pytest.raises(VerificationError, match=r"the model returns a tensor of shape \[12, 3\] and no scalar loss"):
        megaselect.verify(layer, x)
    with pytest.raises(VerificationError, match="loss_fn returns a str and no scalar loss"):
        megaselect.verify(layer, x, loss_fn=str)


@pytest.mark.parametrize("recompute", [{"mode": "selective"}, {"mode": "full"}], ids=["selective", "full"])
def test_our_own_model_is_compared_with_itself_without_recomputation(recompute):
    config = make_config(recompute, num_layers=2)
    model = build_unchecked(config)
    policies = [block.attention.core.policy for block in model.layers]
    report = megaselect.verify(model, make_batch(config))
    assert set(outcomes(report).values()) == {"passed"}, str(report)
    assert [block.attention.core.policy for block in model.layers] == policies


@functools.cache
def gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": 50, "n_positions": 16}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)  # dropout 0.1 is its default
    return transformers.GPT2LMHeadModel(config)


def hugging_face_report(train=True, **settings):
    model = gpt2().train(train)
    model.gradient_checkpointing_enable(settings or None)
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(2))
    return megaselect.verify(model, {"input_ids": tokens, "labels": tokens})


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
class TestHuggingFace:
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_its_gradient_checkpointing_passes(self, reentrant):
        report = hugging_face_report(use_reentrant=reentrant)
        assert set(outcomes(report).values()) == {"passed"}, str(report)
        drawn = "6 drawn again, each the same; 1 drawn once, outside of what runs again"
        assert details(report)["random numbers"] == drawn

    def test_without_the_random_state_it_fails(self):
        report = hugging_face_report(use_reentrant=False, preserve_rng_state=False)
        assert failed(report) == {"random numbers", "same bits", "second run"}
        assert "transformer.h.1" in details(report)["random numbers"]

    def test_in_eval_mode_it_recomputes_nothing(self):
        report = hugging_face_report(train=False)
        assert failed(report) == {"recomputes"}
        expected = "it recomputes nothing: gradient_checkpointing is set on 3 modules, and the model is in eval mode"
        assert details(report)["recomputes"] == expected
