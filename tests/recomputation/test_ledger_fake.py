"""Fake tensors have bytes and no memory: their ledger is that of the real ones, for models of any size."""

import contextlib
from pathlib import Path

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_hugging_face import MODELS, TOKENS, checkpoint_layers, loss_of
from tiny_models import build_unchecked, make_batch, make_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import create_selective_checkpoint_contexts

import megaselect
from megaselect import Config
from megaselect.ledger import record
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.models.gpt.model import GPT
from megaselect.prediction.saved_bytes import LayerShape, saved_bytes
from megaselect.recomputation.plan import make_plan

CONFIGS = Path(megaselect.__file__).parents[1] / "configs"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    yield
    torch.set_default_dtype(before)


def fake_ledger(config):
    """Of the config's model and batch; neither its weights nor its activations are ever in memory."""
    with FakeTensorMode(), default_dtype(DTYPES[config.training.dtype]):
        model = GPT(config.model, config.training.seed, config.training.loss_chunk_tokens)
        apply_recompute(model, make_plan(config.recompute, config.model.num_layers))
        tokens = torch.zeros(config.training.micro_batch_size, config.model.seq_length, dtype=torch.int64)
        with record(model) as ledger:
            model(tokens, tokens.clone(), torch.arange(len(tokens)))
    return ledger


def real_ledger(config, device="cpu"):
    model = build_unchecked(config).to(device)
    batch = [tensor.to(device) for tensor in make_batch(config)]
    with record(model) as ledger:
        model(*batch)
    return ledger


@pytest.mark.parametrize("attention", ["unfused", "fused", "sdpa"])
@pytest.mark.parametrize("name", ["none", "softmax dropout", "core_attn", "all", "uniform 2"])
def test_our_model_in_fake_tensors_has_the_same_rows(name, attention):
    dropout = {"attention_dropout_p": 0.0} if attention == "sdpa" else {}
    config = make_config(SETTINGS[name], dtype="bf16", attention=attention, **dropout)
    real = real_ledger(config)
    assert fake_ledger(config).as_dicts() == real.as_dicts()
    assert real.total > 0
    if attention != "sdpa":  # torch's attention takes another kernel on the meta device
        assert real_ledger(config, "meta").as_dicts() == real.as_dicts()


@pytest.mark.parametrize("selective", [None, False, True], ids=["plain", "checkpointed", "selective"])
@pytest.mark.parametrize("name", MODELS)
def test_others_models_in_fake_tensors_have_the_same_rows(name, selective):
    def ledger_of(tokens):
        model = MODELS[name](attention="eager")  # given sdpa, they make no mask of real tokens and one of fake tokens
        if selective is not None:
            products = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
            contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(products)} if selective else {}
            checkpoint_layers(model, **contexts)
        with record(model) as ledger:
            loss_of(model, tokens)
        return ledger

    real = ledger_of(TOKENS)
    with FakeTensorMode() as mode:
        fake = ledger_of(mode.from_tensor(TOKENS))
    assert fake.as_dicts() == real.as_dicts()
    assert (fake.recomputed_total > 0) == (selective is not None)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_the_bytes_of_a_model_that_does_not_fit_this_machine(mode):
    changes = {"training.dtype": "bf16", "recompute.mode": mode, "training.micro_batch_size": 8}
    changes["training.global_batch_size"] = 8
    config = Config.from_dict(Config.from_yaml(CONFIGS / "gpt-1.3b.yaml").to_dict(), overrides=changes)
    expected = saved_bytes(LayerShape.of(config, 2), make_plan(config.recompute, config.model.num_layers))
    assert fake_ledger(config).total == expected
    assert expected > 2**30


@pytest.mark.cuda
@pytest.mark.parametrize("selective", [None, False, True], ids=["plain", "checkpointed", "selective"])
@pytest.mark.parametrize("name", MODELS)
def test_the_ledger_of_a_gpu_is_what_its_allocator_handed_out(name, selective):
    block_bytes = 512  # of torch's allocator
    model = MODELS[name]().cuda()
    if selective is not None:
        products = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(products)} if selective else {}
        checkpoint_layers(model, **contexts)
    tokens = TOKENS.cuda()
    loss_of(model, tokens)  # what only a first call allocates is no part of it
    before = torch.cuda.memory_allocated()
    loss = loss_of(model, tokens)
    grown = torch.cuda.memory_allocated() - before
    del loss
    with record(model) as ledger:
        loss_of(model, tokens)
    made = [row.bytes for row in ledger.rows if row.dtype != torch.int64 or row.shape != tuple(tokens.shape)]
    assert grown == sum(-(-size // block_bytes) * block_bytes for size in made) + block_bytes  # and the loss
