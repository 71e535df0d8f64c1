"""The model on its own: initial weights, shapes, padding, modes and errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import MODEL, gradients, make_batch, make_config

import megaselect
from megaselect import Config, build_model
from megaselect.errors import ConfigError, DeviceError, SampleIndexError


def test_initial_weights_have_gpt2_s_statistics():
    model = build_model(make_config(hidden_size=128, num_attention_heads=8, ffn_hidden_size=384, vocab_size=1000))
    residual = 0.02 / (2 * MODEL["num_layers"]) ** 0.5
    checked = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif "ln" in name or "layernorm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            std = residual if name.endswith(("attention.projection.weight", "mlp.fc2.weight")) else 0.02
            within = 5 / parameter.numel() ** 0.5  # five standard errors, of the mean in units of std
            assert parameter.std().item() == pytest.approx(std, rel=within), name
            assert abs(parameter.mean().item()) < within * std, name
            checked += 1
    assert checked == 2 + 4 * MODEL["num_layers"]


def test_init_std_is_a_setting():
    small, large = (build_model(make_config(init_std=std)).layers[0].mlp.fc1.weight for std in (0.02, 0.06))
    torch.testing.assert_close(3 * small, large)


def test_initial_weights_depend_on_the_seed_alone():
    first = build_model(make_config()).state_dict()
    torch.manual_seed(99)
    again = build_model(make_config({"mode": "full"})).state_dict()
    other = build_model(make_config(seed=1235)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if first[name].std() > 0]
    assert len(drawn) == 2 + 4 * MODEL["num_layers"]
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_every_dtype_starts_from_the_same_weights_rounded(dtype):
    wide, narrow = build_model(make_config()).state_dict(), build_model(make_config(dtype=dtype)).state_dict()
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert all(torch.equal(wide[name].to(expected), narrow[name]) for name in wide)
    assert {tensor.dtype for tensor in narrow.values()} == {expected}


@pytest.mark.parametrize("vocab_size", [97, 128, 129])
def test_the_number_of_parameters(vocab_size):
    layers, h, ffn, s = 4, 48, 80, 21
    padded = {97: 128, 128: 128, 129: 256}[vocab_size]
    layer = (3 * h * h + 3 * h) + (h * h + h) + (h * ffn + ffn) + (ffn * h + h) + 4 * h
    model = build_model(make_config(vocab_size=vocab_size))
    assert sum(parameter.numel() for parameter in model.parameters()) == padded * h + s * h + layers * layer + 2 * h
    assert make_config(vocab_size=vocab_size).model.padded_vocab_size == padded


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_shapes_and_dtypes(dtype):
    config = make_config(dtype=dtype, batch=3)
    model = build_model(config)
    tokens, targets, samples = make_batch(config)
    logits, loss = model(tokens, None, samples), model(tokens, targets, samples)
    assert logits.shape == (3, 21, 97)
    assert logits.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    exact = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert abs(loss.item() - torch.tensor(97.0).log().item()) < 0.2  # 97 equally likely tokens


def test_padded_vocabulary_has_no_say_and_no_gradient():
    config = make_config()
    model = build_model(config)
    batch = make_batch(config)
    loss = model(*batch)
    loss.backward()
    grad = model.token_embedding.weight.grad
    assert grad.shape == (128, 48)
    assert torch.equal(grad[97:], torch.zeros(31, 48))
    assert (grad[:97] != 0).any(1).all()
    with torch.no_grad():
        model.token_embedding.weight[97:] = 1e4
    assert torch.equal(model(*batch), loss)


def test_the_head_is_tied_to_the_embedding():
    config = make_config()
    model = build_model(config).eval()
    tokens, _, _ = make_batch(config)
    tokens = tokens.clamp(max=95)
    logits = model(tokens)
    with torch.no_grad():
        model.token_embedding.weight[96] *= 2  # no token of the batch: only the head reads it
    doubled = model(tokens)
    assert torch.equal(doubled[..., :96], logits[..., :96])
    torch.testing.assert_close(doubled[..., 96], 2 * logits[..., 96])


def test_training_with_dropout_needs_sample_indices():
    config = make_config()
    model = build_model(config)
    tokens, targets, samples = make_batch(config)
    with pytest.raises(SampleIndexError, match=r"training with dropout needs sample_index \[b\]"):
        model(tokens, targets)
    for shape in ((3,), (2, 1), ()):
        with pytest.raises(SampleIndexError, match="for 2 samples: give one each"):
            model(tokens, targets, samples.new_zeros(shape))


@pytest.mark.parametrize("name", ["attention_dropout_p", "hidden_dropout_p"])
def test_one_kind_of_dropout_is_enough_to_need_sample_indices(name):
    config = make_config(**{"dropout_p": 0.0, name: 0.1})
    with pytest.raises(SampleIndexError, match="needs sample_index"):
        build_model(config)(*make_batch(config)[:2])


def test_without_dropout_no_sample_index_is_needed_and_none_matters():
    config = make_config(dropout_p=0.0)
    model = build_model(config)
    tokens, targets, samples = make_batch(config)
    assert torch.equal(model(tokens, targets), model(tokens, targets, samples))
    assert torch.equal(model(tokens, targets), model.eval()(tokens, targets))


def test_evaluation_drops_nothing():
    config = make_config()
    model, without = build_model(config).eval(), build_model(make_config(dropout_p=0.0))
    tokens, targets, samples = make_batch(config)
    loss = model(tokens, targets)
    assert torch.equal(model(tokens, targets), loss)
    assert torch.equal(model(tokens, targets, samples + 1), loss)
    assert torch.equal(without(tokens, targets), loss)
    assert not torch.equal(model.train()(tokens, targets, samples), loss)
    loss.backward()
    assert all(grad.abs().max() > 0 for grad in gradients(model).values())


def test_more_tokens_than_positions_are_refused():
    config = make_config()
    tokens = torch.zeros(2, 22, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"22 tokens exceed model\.seq_length = 21"):
        build_model(config)(tokens, None, torch.arange(2))


def test_a_short_prompt_gives_the_first_logits_of_a_longer_one():
    config = make_config()
    model = build_model(config).eval()
    tokens = make_batch(config)[0]
    torch.testing.assert_close(model(tokens[:, :9]), model(tokens)[:, :9], rtol=1e-5, atol=1e-6)


CHILD = """
import json, sys
from megaselect import Config, build_model
for config in json.load(sys.stdin):
    try:
        build_model(Config.from_dict(config))
    except Exception as error:
        print(type(error).__module__, type(error).__name__, error, sep="|")
"""


def refusals_in_a_child(*configs):
    """Of each config what build_model raises in a process without a GPU and an interpreter: class and message."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(megaselect.__file__).parents[1])
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([config.model_dump(mode="json", exclude_unset=True) for config in configs]),
        capture_output=True,
        text=True,
        check=True,
        env=inherited | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root},
    )
    return child.stdout.splitlines()


NO_INTERPRETER = "Triton kernels do not run on device cpu: use --kernel-backend torch or auto"


def test_a_gpu_that_is_not_there_and_triton_on_a_cpu_are_refused():
    on_gpu = Config.from_dict(make_config().to_dict(), overrides={"training.device": "cuda"})
    no_gpu, no_interpreter = refusals_in_a_child(on_gpu, make_config(kernel_backend="triton"))
    expected = "megaselect.errors|DeviceError|"
    assert no_gpu.startswith(f"{expected}device cuda was asked for and torch sees no GPU: use --device cpu, or")
    assert no_interpreter.startswith(f"{expected}{NO_INTERPRETER}")


def test_triton_on_a_cpu_is_built_with_its_interpreter_alone(monkeypatch):
    config = make_config(kernel_backend="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    build_model(config)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(DeviceError, match=NO_INTERPRETER):
        build_model(config)
