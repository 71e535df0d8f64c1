"""An independent truth without dropout: Hugging Face's GPT-2 with the same weights."""

import pytest
import torch
from tiny_models import gradients, make_batch, make_config
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from megaselect import build_model

MODEL = {"num_layers": 3, "num_attention_heads": 4, "ffn_hidden_size": 100, "dropout_p": 0.0, "layernorm_epsilon": 1e-4}
IN_A_LAYER = {  # ours: theirs
    "ln1.weight": "ln_1.weight",
    "ln1.bias": "ln_1.bias",
    "attention.qkv.weight": "attn.c_attn.weight",
    "attention.qkv.bias": "attn.c_attn.bias",
    "attention.projection.weight": "attn.c_proj.weight",
    "attention_dropout.bias": "attn.c_proj.bias",
    "ln2.weight": "ln_2.weight",
    "ln2.bias": "ln_2.bias",
    "mlp.fc1.weight": "mlp.c_fc.weight",
    "mlp.fc1.bias": "mlp.c_fc.bias",
    "mlp.fc2.weight": "mlp.c_proj.weight",
    "mlp_dropout.bias": "mlp.c_proj.bias",
}
OUTSIDE = {
    "token_embedding.weight": "transformer.wte.weight",
    "position_embedding.weight": "transformer.wpe.weight",
    "final_layernorm.weight": "transformer.ln_f.weight",
    "final_layernorm.bias": "transformer.ln_f.bias",
}


def in_their_layout(tensors, config):
    """Weights or gradients by their names and in their layout: products transposed, q, k and v one after another."""
    theirs = {OUTSIDE[name]: tensor for name, tensor in tensors.items() if name in OUTSIDE}
    theirs["transformer.wte.weight"] = theirs["transformer.wte.weight"][: config.model.vocab_size]
    for layer in range(config.model.num_layers):
        for ours, name in IN_A_LAYER.items():
            tensor = tensors[f"layers.{layer}.{ours}"]
            if ours.startswith("attention.qkv"):
                by_head = tensor.unflatten(0, (config.model.num_attention_heads, 3, -1))  # [a][3][d]
                tensor = by_head.transpose(0, 1).flatten(0, 2)
            theirs[f"transformer.h.{layer}.{name}"] = tensor.t() if tensor.dim() == 2 else tensor
    assert len(theirs) == len(tensors)
    return theirs


def build_theirs(config, weights):
    shape = config.model
    hugging_face = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.seq_length,
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_attention_heads,
        n_inner=shape.ffn_hidden_size,
        layer_norm_epsilon=shape.layernorm_epsilon,
        bos_token_id=0,
        eos_token_id=0,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_implementation="eager",
        use_cache=False,
    )
    theirs = GPT2LMHeadModel(hugging_face).to(weights["final_layernorm.bias"].dtype)
    mapped = in_their_layout(weights, config)
    missing, unexpected = theirs.load_state_dict(mapped, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied to the embedding
    return theirs


def shaken(model):
    """Biases and layernorms start at 0 and 1, where a mistake in them would not show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    return model


CASES = [(attention, *case) for attention in ("unfused", "fused", "sdpa") for case in (("fp64", 1e-10), ("fp32", 2e-5))]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]}")
def pair(request):
    """(our model, theirs, config, tolerance)"""
    attention, dtype, tolerance = request.param
    config = make_config(batch=3, attention=attention, **MODEL)
    ours = shaken(build_model(config).to({"fp64": torch.float64, "fp32": torch.float32}[dtype]))
    return ours, build_theirs(config, ours.state_dict()), config, tolerance


def test_logits_loss_and_every_gradient(pair, relative_error):
    ours, theirs, config, tolerance = pair
    tokens, targets, samples = make_batch(config)
    logits, expected_logits = ours(tokens), theirs(input_ids=tokens).logits
    assert logits.shape == expected_logits.shape == (3, config.model.seq_length, config.model.vocab_size)
    assert relative_error(logits, expected_logits) < tolerance

    loss = ours(tokens, targets, samples)
    expected_loss = functional.cross_entropy(expected_logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    loss.backward()
    expected_loss.backward()
    grads, expected = in_their_layout(gradients(ours), config), gradients(theirs)
    errors = {name: relative_error(grads[name], expected[name]) for name in expected}
    assert len(errors) == len(grads)
    assert all(error < tolerance for error in errors.values()), errors


def test_fewer_tokens_than_positions(pair, relative_error):
    ours, theirs, config, tolerance = pair
    tokens = make_batch(config)[0][:, :5]
    assert relative_error(ours(tokens), theirs(input_ids=tokens).logits) < tolerance


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("changed", [1, 12, 20])
@pytest.mark.parametrize("attention", ["unfused", "fused"])
def test_a_later_token_does_not_change_earlier_logits(dtype, changed, attention):
    config = make_config(dtype=dtype, attention=attention)
    model = build_model(config)
    tokens, _, samples = make_batch(config)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % config.model.vocab_size
    before, after = (model(ids, None, samples) for ids in (tokens, other))
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert all(not torch.equal(before[:, i], after[:, i]) for i in range(changed, config.model.seq_length))
