"""The first tensor of a step that is not finite is found in every mode, and nothing is left of the search."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megaselect.build import build_model
from megaselect.data.sampler import TokenSource
from megaselect.models.gpt.compiled import is_compiled
from megaselect.models.gpt.layers import run_fused
from megaselect.training.diagnosis import Finding, diagnose
from megaselect.training.optimizer import MixedPrecisionAdamW
from megaselect.training.state import RunState
from megaselect.training.step import Stepper

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode leaves test folders off it
import poison

MODES = {
    "none": {},
    "softmax dropout": {"recompute__mode": "selective"},
    "core_attn": {"recompute__mode": "selective", "recompute__modules": ["core_attn", "dropout"]},
    "all": {"recompute__mode": "selective", "recompute__modules": "all"},
    "full": {"recompute__mode": "full"},
    "chunk of 2": {"recompute__mode": "full", "recompute__num_layers": 2},
}
BEFORE = RunState(step=3, next_sample=12)  # the step has the micro-batches of samples 12-13 and 14-15
FC1 = "layers.1.mlp.fc1"


@pytest.fixture(scope="module")
def make_trial(make_config, dataset):
    """`make_trial(**overrides)`: a model and what is needed to take steps with it."""

    def make(**overrides):
        config = make_config(**overrides)
        model = build_model(config)
        optimizer = MixedPrecisionAdamW(model, config.training)
        source = TokenSource(dataset, config.model.seq_length, config.training.seed)
        stepper = Stepper(config.training, model, optimizer, source)
        return SimpleNamespace(config=config, model=model, optimizer=optimizer, stepper=stepper, source=source)

    return make


def found_in(trial):
    """What the diagnosis finds, after it was seen to leave no trace."""
    before, hooks = {name: tensor.clone() for name, tensor in tensors_of(trial).items()}, hooks_of(trial.model)
    found = diagnose(trial.model, trial.optimizer, trial.stepper, BEFORE)
    after = tensors_of(trial)
    assert [name for name in before if not before[name].equal(after[name])] == []
    holders = (*trial.model.parameters(), *trial.optimizer.masters.values())
    assert all(holder.grad is None for holder in holders)
    assert hooks_of(trial.model) == hooks
    return found


def hooks_of(model):
    on_weights = sum(len(weight._backward_hooks or ()) for weight in model.parameters())
    return on_weights + sum(len(module._forward_hooks) for module in model.modules())


def tensors_of(trial):
    return dict(trial.model.named_parameters()) | trial.optimizer.tensors()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("act", "kind"), [(poison.nan_in_output, "output"), (poison.inf_in_gradient, "gradient of output")]
)
def test_the_first_tensor_is_found_in_every_mode(make_trial, mode, act, kind):
    trial = make_trial(**MODES[mode])
    poison.at_sample(trial.model, FC1, 15, act)
    outcome, _ = trial.stepper.step(BEFORE)
    assert outcome.nonfinite
    assert math.isfinite(outcome.loss) == (kind != "output")
    assert found_in(trial) == Finding(kind, FC1, 1, 1, 4096, (16, 2, 128), "float32")


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_the_first_tensor_is_found_in_16_bit(make_trial, dtype, name):
    trial = make_trial(training__dtype=dtype)
    where = "layers.0.attention.core"
    poison.at_sample(trial.model, where, 12, poison.inf_in_gradient)
    assert found_in(trial) == Finding("gradient of output", where, 0, 1, 1024, (16, 2, 32), name)


def test_the_layernorm_that_is_fused_with_what_comes_before_is_seen_too(make_trial):
    trial = make_trial()
    assert run_fused(trial.model.layers[0].attention_dropout, trial.model.layers[0].ln2)
    with torch.no_grad():
        trial.model.layers[0].ln2.weight[3] = 3e38
        trial.model.layers[0].ln2.bias[3] = 3e38
    assert str(found_in(trial)).startswith("output of layers.0.ln2, ")
    assert run_fused(trial.model.layers[0].attention_dropout, trial.model.layers[0].ln2)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_weight_that_is_not_finite_is_named_before_what_it_does(make_trial, dtype):
    trial = make_trial(training__dtype=dtype)
    with torch.no_grad():
        trial.model.layers[1].mlp.fc2.weight[2, 3:5] = float("inf")
    assert str(found_in(trial)) == "weight layers.1.mlp.fc2.weight, 2 of 4096 values"


def test_gradients_that_only_overflow_together(make_trial):
    trial = make_trial()
    trial.model.layers[1].mlp.fc1.bias.register_hook(lambda gradient: torch.full_like(gradient, 2e38))
    assert found_in(trial) == Finding("sum of gradients", "layers.1.mlp.fc1.bias", None, 128, 128, (128,), "float32")


def test_a_norm_that_overflows_without_an_infinite_gradient(make_trial):
    trial = make_trial()
    trial.model.layers[1].mlp.fc1.bias.register_hook(lambda gradient: torch.full_like(gradient, 1e38))
    outcome, _ = trial.stepper.step(BEFORE)
    assert (outcome.nonfinite, outcome.grad_norm) == (True, math.inf)
    assert str(found_in(trial)) == "norm of the gradients, each of which is finite"


def test_a_finite_step_has_nothing_to_be_found(make_trial):
    assert found_in(make_trial()) is None


@pytest.mark.compiles
def test_a_compiled_model_is_watched_uncompiled_and_compiled_again(make_trial):
    trial = make_trial(training__compile=True, recompute__mode="selective")
    with torch.no_grad():
        trial.model.layers[1].mlp.fc1.weight[9] = 3e38
    found = found_in(trial)
    assert (found.kind, found.where, found.micro_batch) == ("output", FC1, 0)
    assert all(map(is_compiled, trial.model.layers))
