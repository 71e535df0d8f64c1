"""The promises on a real GPU: the same bits in every mode and bytes as predicted, compiled or not."""

import json

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, gradients, make_batch, make_config

from megaselect import Config
from megaselect.cli.main import main
from megaselect.ledger import record
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes, saved_tensors
from megaselect.recomputation.plan import make_plan

pytestmark = pytest.mark.cuda

NAMES = ["softmax dropout", "core_attn dropout", "layernorm", "gelu", "all", "uniform 1", "uniform 2"]
ATTENTIONS = ["unfused", "fused", "sdpa"]
every_attention = pytest.mark.parametrize("attention", ATTENTIONS)
HEADS, LAYERS = 3, 4


def config_of(name, attention, dtype, head_size, batch, sequence):
    config = make_config(
        SETTINGS[name],
        dtype=dtype,
        batch=batch,
        attention=attention,
        attention_dropout_p=0.0 if attention == "sdpa" else 0.1,
        hidden_size=HEADS * head_size,
        ffn_hidden_size=4 * HEADS * head_size,
        num_attention_heads=HEADS,
        seq_length=sequence,
    )
    return Config.from_dict(config.to_dict(), overrides={"training.device": "cuda"})


def step(model, config):
    """(loss, gradients by name, what was saved for backward)."""
    model.zero_grad()
    with record(model) as ledger:
        loss = model(*(tensor.cuda() for tensor in make_batch(config)))
    loss.backward()
    return loss.detach(), {name: grad.clone() for name, grad in gradients(model).items()}, ledger


@pytest.fixture(params=[False, True], ids=["as-it-comes", "deterministic"])
def determinism(request, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@every_attention
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(
    ("head_size", "batch", "sequence"), [(64, 1, 1024), (120, 4, 1024), (128, 1, 2048), (64, 2, 1100)]
)
def test_every_mode_gives_the_same_bits(attention, dtype, head_size, batch, sequence, determinism):
    if attention == "sdpa" and not determinism:
        pytest.skip("torch's own attention repeats itself only with deterministic algorithms")
    config = config_of("none", attention, dtype, head_size, batch, sequence)
    model = build_unchecked(config)
    wanted_loss, wanted, _ = step(model, config)
    for name in ["none", *NAMES]:
        plan = make_plan(make_config(SETTINGS[name]).recompute, LAYERS)
        apply_recompute(model, plan)
        loss, grads, _ = step(model, config)
        assert torch.equal(loss, wanted_loss), name
        assert [key for key in wanted if not torch.equal(grads[key], wanted[key])] == [], name


@every_attention
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["none", *NAMES])
def test_bytes_are_as_predicted(attention, dtype, name):
    config = config_of(name, attention, dtype, 64, 2, 1024)
    shape = LayerShape.of(config, {"bf16": 2, "fp32": 4}[dtype])
    plan = make_plan(config.recompute, LAYERS)
    _, _, ledger = step(build_unchecked(config), config)
    assert ledger.by_name() == {(row.layer, row.name): row.bytes for row in saved_tensors(shape, plan)}
    assert ledger.total == saved_bytes(shape, plan)


@pytest.mark.parametrize("attention", ["unfused", "fused"])
def test_compiled_layers_give_the_same_bits_in_every_mode(attention):
    config = config_of("none", attention, "bf16", 64, 2, 1024)
    model = build_unchecked(config)
    results = {}
    for name in ["none", "softmax dropout", "all", "uniform 1"]:
        torch._dynamo.reset()
        apply_recompute(model, make_plan(make_config(SETTINGS[name]).recompute, LAYERS), compiled=True)
        results[name] = step(model, config)[:2]
    loss, wanted = results.pop("none")
    for name, (other_loss, grads) in results.items():
        assert torch.equal(other_loss, loss), name
        assert [key for key in wanted if not torch.equal(grads[key], wanted[key])] == [], name


@pytest.mark.parametrize("attention", ["unfused", "fused"])
def test_train_py_prints_the_same_losses_in_every_mode(attention, tmp_path):
    lines = {}
    for mode in (["none"], ["selective"], ["selective", "--recompute-modules", "all"], ["full"]):
        run_dir = tmp_path / "-".join(mode)
        flags = ["--config", "tiny", "--device", "cuda", "--dtype", "bf16", "--attention", attention]
        flags += ["--max-steps", "20", "--wandb", "disabled", "--run-dir", str(run_dir), "--recompute", *mode]
        assert main(["train", *flags]) == 0
        metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        lines["-".join(mode)] = [(line["loss"], line["grad_norm"]) for line in metrics]
    assert all(line == lines["none"] for line in lines.values())
