"""An independent truth with dropout on: a plain fp64 GPT whose masks come from the slow reference.

It settles what the masks are a function of: site numbers, orientation (row = query or token, column = key or channel),
sample indices and seed; and that kept values are scaled by 256/(256 - t).
"""

import itertools
import math

import mask_reference
import pytest
import torch
from tiny_models import gradients, make_config
from torch.nn import functional

from megaselect import build_model

EMBEDDING, PROJECTION, MLP = 2**31 - 1, 4000, 4001
SELECTIVE, ALL = {"mode": "selective"}, {"mode": "selective", "modules": "all"}
SHAPE = {"num_layers": 2, "hidden_size": 70, "num_attention_heads": 5, "ffn_hidden_size": 44, "seq_length": 19}


class PlainGPT:
    """Layout [b, s, h], explicit masks, torch's softmax, cross-entropy and autograd."""

    def __init__(self, weights, config, samples):
        self.weights, self.shape, self.seed, self.samples = weights, config.model, config.training.seed, samples

    def dropped(self, x, probability, site):
        """x [b, planes, rows, columns] after dropout, plane p at site + p."""
        threshold = math.floor(256 * probability + 0.5)
        _, planes, rows, columns = x.shape
        masks = mask_reference.dropped_planes(self.seed, self.samples, site, planes, threshold, rows, columns)
        return torch.where(torch.from_numpy(masks), 0.0, x * (256 / (256 - threshold)))

    def hidden_dropped(self, x, site):
        return self.dropped(x.unsqueeze(1), self.shape.hidden_dropout_p, site).squeeze(1)

    def normalised(self, x, name):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], weight, bias, self.shape.layernorm_epsilon)

    def attention(self, x, layer):
        weights, heads = self.weights, self.shape.num_attention_heads
        qkv = x @ weights[f"layers.{layer}.attention.qkv.weight"].t() + weights[f"layers.{layer}.attention.qkv.bias"]
        query, key, value = qkv.unflatten(2, (heads, 3, -1)).permute(3, 0, 2, 1, 4)  # each [b, a, s, d]
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        probs = functional.softmax(scores.masked_fill(future, -torch.inf), -1)
        probs = self.dropped(probs, self.shape.attention_dropout_p, layer * 4096)
        context = (probs @ value).transpose(1, 2).flatten(2)
        return context @ weights[f"layers.{layer}.attention.projection.weight"].t()

    def mlp(self, x, layer):
        weights = self.weights
        inner = x @ weights[f"layers.{layer}.mlp.fc1.weight"].t() + weights[f"layers.{layer}.mlp.fc1.bias"]
        return functional.gelu(inner, approximate="tanh") @ weights[f"layers.{layer}.mlp.fc2.weight"].t()

    def loss(self, tokens, targets):
        weights = self.weights
        x = weights["token_embedding.weight"][tokens] + weights["position_embedding.weight"][: tokens.shape[1]]
        x = self.hidden_dropped(x, EMBEDDING)
        for layer in range(self.shape.num_layers):
            added = self.attention(self.normalised(x, f"layers.{layer}.ln1"), layer)
            added = added + weights[f"layers.{layer}.attention_dropout.bias"]
            x = x + self.hidden_dropped(added, layer * 4096 + PROJECTION)
            added = self.mlp(self.normalised(x, f"layers.{layer}.ln2"), layer)
            x = x + self.hidden_dropped(added + weights[f"layers.{layer}.mlp_dropout.bias"], layer * 4096 + MLP)
        hidden = self.normalised(x, "final_layernorm")
        logits = hidden @ weights["token_embedding.weight"][: self.shape.vocab_size].t()
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def errors_against_the_plain_gpt(config, samples, relative_error):
    """Name -> relative error of the loss and of every gradient."""
    generator = torch.Generator().manual_seed(5)
    model = build_model(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    shape = (2, len(samples), config.model.seq_length)
    tokens, targets = torch.randint(config.model.vocab_size, shape, generator=generator)

    weights = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    expected = PlainGPT(weights, config, samples).loss(tokens, targets)
    expected.backward()
    loss = model(tokens, targets, torch.tensor(samples))
    loss.backward()
    errors = {name: relative_error(grad, weights[name].grad) for name, grad in gradients(model).items()}
    return errors | {"loss": relative_error(loss.detach(), expected.detach())}


SEEDS = [0, 1234, 2**63 + 12345]
SAMPLES = [[0, 1, 2], [1_000_003, 7], [2**32 - 1, 2**32 + 7]]
PROBABILITIES = [(0.1, 0.25), (0.5, 0.1), (0.0, 0.3), (0.3, 0.0)]


@pytest.mark.parametrize(("seed", "samples"), list(itertools.product(SEEDS, SAMPLES)), ids=str)
def test_seeds_and_samples(seed, samples, relative_error):
    config = make_config(seed=seed, **SHAPE)
    errors = errors_against_the_plain_gpt(config, samples, relative_error)
    assert all(error < 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("recompute", [{}, SELECTIVE, {"mode": "full"}], ids=["none", "selective", "full"])
@pytest.mark.parametrize(("attention_p", "hidden_p"), PROBABILITIES)
def test_probabilities_in_every_mode(recompute, attention_p, hidden_p, relative_error):
    config = make_config(recompute, **SHAPE, attention_dropout_p=attention_p, hidden_dropout_p=hidden_p)
    errors = errors_against_the_plain_gpt(config, [3, 40], relative_error)
    assert all(error < 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("recompute", [{}, ALL, {"mode": "full"}], ids=["none", "all", "full"])
@pytest.mark.parametrize(("attention_p", "hidden_p"), PROBABILITIES)
def test_fused_attention_in_every_mode(recompute, attention_p, hidden_p, relative_error):
    dropout = {"attention_dropout_p": attention_p, "hidden_dropout_p": hidden_p}
    config = make_config(recompute, **SHAPE, **dropout, attention="fused", loss_chunk_tokens=7)
    errors = errors_against_the_plain_gpt(config, [3, 40], relative_error)
    assert all(error < 1e-10 for error in errors.values()), errors


@pytest.mark.parametrize("seq_length", [1, 16, 33, 65])
def test_lengths_around_the_tiles_of_the_mask(seq_length, relative_error):
    config = make_config(**SHAPE | {"seq_length": seq_length}, dropout_p=0.2)
    errors = errors_against_the_plain_gpt(config, [11], relative_error)
    assert all(error < 1e-10 for error in errors.values()), errors
