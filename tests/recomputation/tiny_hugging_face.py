"""Models of Hugging Face with random weights, small, and a batch for them."""

import functools

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LAYERS, VOCABULARY = 3, 113
TOKENS = torch.randint(VOCABULARY, (3, 19), generator=torch.Generator().manual_seed(1))


def gpt2(dropout_p=0.1, attention="sdpa"):
    dropout = {"attn_pdrop": dropout_p, "embd_pdrop": dropout_p, "resid_pdrop": dropout_p}
    sizes = {"n_layer": LAYERS, "n_embd": 40, "n_head": 5, "n_positions": 32, "vocab_size": VOCABULARY}
    # One op for GELU: where a model multiplies by Python numbers, torch keeps 8 bytes each that it shows to no hook.
    more = {"activation_function": "gelu_pytorch_tanh", "use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **more, attn_implementation=attention)).train()


def llama(attention="sdpa"):
    sizes = {"num_hidden_layers": LAYERS, "hidden_size": 40, "intermediate_size": 72, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 32}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, use_cache=False, attn_implementation=attention)).train()


MODELS = {"gpt2": gpt2, "gpt2 without dropout": functools.partial(gpt2, 0.0), "llama": llama}


def checkpoint_layers(model, **settings):
    """By the library's own switch."""
    settings = {"use_reentrant": False, "preserve_rng_state": False, **settings}
    switch = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    switch(settings)
    return model


def loss_of(model, tokens=TOKENS):
    return model(input_ids=tokens, return_dict=False)[0].logsumexp(-1).mean()
