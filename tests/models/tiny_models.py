"""Configs, models and batches small enough to run hundreds of times. No two sizes of a shape are equal."""

import torch

from megaselect import Config, build_model
from megaselect.models.gpt.apply_plan import apply_recompute
from megaselect.recomputation.plan import make_plan

MODEL = {
    "num_layers": 4,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "ffn_hidden_size": 80,
    "seq_length": 21,
    "vocab_size": 97,
    "dropout_p": 0.1,
}


def make_config(recompute=None, *, dtype="fp32", seed=1234, batch=2, loss_chunk_tokens=None, **model):
    training = {"device": "cpu", "dtype": dtype, "seed": seed, "micro_batch_size": batch, "global_batch_size": batch}
    training["loss_chunk_tokens"] = loss_chunk_tokens
    model = MODEL | model
    data = {"vocab_size": model["vocab_size"]}
    return Config.from_dict({"model": model, "data": data, "training": training, "recompute": recompute or {}})


def make_batch(config, first_sample=0, batch=None):
    """(tokens, targets, sample_index): a function of the sample indices, however they are split into batches."""
    shape = (2, config.model.seq_length)
    samples = range(first_sample, first_sample + (batch or config.training.micro_batch_size))
    drawn = [
        torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(sample))
        for sample in samples
    ]
    tokens, targets = torch.stack(drawn, 1).clone().unbind()
    return tokens.clone(), targets.clone(), torch.tensor(samples)


def build_unchecked(config):
    """build_model for settings too that save nothing with this shape, which it would refuse."""
    model = build_model(Config.from_dict(config.to_dict(), overrides={"recompute.mode": "none"}))
    apply_recompute(model, make_plan(config.recompute, config.model.num_layers))
    return model


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}
