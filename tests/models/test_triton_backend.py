"""The model on its Triton kernels: in Triton's interpreter where there is no GPU."""

import functools

import pytest
import torch
from tiny_models import build_unchecked, gradients, make_batch

from megaselect import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODEL = {  # one layer, rows of one tile, half the random words: the interpreter takes a second for the kernels of each
    "num_layers": 1,
    "hidden_size": 12,
    "num_attention_heads": 2,
    "ffn_hidden_size": 20,
    "seq_length": 15,
    "vocab_size": 97,
    "dropout_p": 0.125,
}


def make_config(backend, recompute=None):
    training = {"device": DEVICE, "dtype": "fp32", "micro_batch_size": 1, "global_batch_size": 1}
    model = MODEL | {"kernel_backend": backend}
    data = {"vocab_size": MODEL["vocab_size"]}
    return Config.from_dict({"model": model, "data": data, "training": training, "recompute": recompute or {}})


@functools.cache
def step(config, record_saved):
    """(loss, gradients, int8 masks kept) of one step."""
    model = build_unchecked(config)
    with record_saved() as saved:
        loss = model(*(tensor.to(DEVICE) for tensor in make_batch(config)))
    masks = [tensor.clone() for tensor in saved if tensor.dtype == torch.int8]
    loss.backward()
    return loss.detach(), gradients(model), masks


def test_it_agrees_with_the_torch_fallback_and_drops_the_same_elements(record_saved, relative_error):
    loss, grads, masks = step(make_config("triton"), record_saved)
    expected_loss, expected_grads, expected_masks = step(make_config("torch"), record_saved)
    assert len(masks) == 3 * MODEL["num_layers"] + 1
    assert all(map(torch.equal, masks, expected_masks))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    errors = {name: relative_error(grads[name], expected_grads[name]) for name in expected_grads}
    assert all(error < 1e-5 for error in errors.values()), errors


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_modes_give_the_same_bits(mode, record_saved):
    loss, grads, masks = step(make_config("triton", {"mode": mode}), record_saved)
    expected_loss, expected_grads, _ = step(make_config("triton"), record_saved)
    assert masks == []
    assert torch.equal(loss, expected_loss)
    assert [name for name in grads if not torch.equal(grads[name], expected_grads[name])] == []
