"""What the weights, their gradients and the optimizer take, against those of a real model, to the byte."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import build_unchecked, make_batch, make_config

from megaselect.distributed.layout import Layout
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.prediction.weights import (
    NORM_BLOCK_ELEMENTS,
    layer_parameters,
    outside_parameters,
    parameter_count,
    stage_parameters,
    stage_tensors,
    static_bytes,
    tensor_count,
)
from megaselect.training.gradient_norm import BLOCK_ELEMENTS
from megaselect.training.optimizer import MixedPrecisionAdamW

ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def counts(model):
    return sum(parameter.numel() for parameter in model.parameters()), len(list(model.parameters()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    heads=st.integers(1, 4),
    head_size=st.integers(1, 9),
    ffn=st.integers(1, 50),
    sequence=st.integers(1, 33),
    vocabulary=st.integers(1, 300),
    layers=st.integers(1, 3),
)
def test_parameters_of_any_model(heads, head_size, ffn, sequence, vocabulary, layers):
    config = make_config(
        num_layers=layers,
        hidden_size=heads * head_size,
        num_attention_heads=heads,
        ffn_hidden_size=ffn,
        seq_length=sequence,
        vocab_size=vocabulary,
    )
    assert counts(build_unchecked(config)) == (parameter_count(LayerShape.of(config, 4), layers), tensor_count(layers))


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
def test_bytes_of_a_model_and_its_optimizer(dtype):
    config = make_config(dtype=dtype)
    model = build_unchecked(config)
    optimizer = MixedPrecisionAdamW(model, config.training)
    optimizer.backward(model(*make_batch(config)))
    gradients = sum(master.grad.nbytes for master in optimizer.masters.values())
    assert dtype == "fp32" or all(parameter.grad is None for parameter in model.parameters())
    optimizer.step(1e-3)
    state = optimizer.tensors()
    masters = sum(tensor.nbytes for name, tensor in state.items() if name.startswith("master."))
    predicted = static_bytes(LayerShape.of(config, ELEMENT_BYTES[dtype]), config.model.num_layers)
    assert predicted.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert predicted.gradients == gradients
    assert predicted.master_weights == masters
    assert predicted.optimizer == sum(tensor.nbytes for tensor in state.values()) - masters
    parts = (predicted.weights, predicted.gradients, predicted.master_weights, predicted.optimizer)
    assert predicted.total == sum(parts)
    assert predicted.total == {4: 16, 2: 18}[ELEMENT_BYTES[dtype]] * counts(model)[0] + 4 * counts(model)[1]


# As Megatron-LM divides: matrices by rows or columns, the vocabulary, and biases of columns.
DIVIDED = tuple(f"{name}.weight" for name in ("token_embedding", "qkv", "projection", "fc1", "fc2"))
DIVIDED += ("qkv.bias", "fc1.bias")


def test_a_tensor_parallel_rank_has_its_share_of_matrices_and_all_of_the_rest():
    config = make_config(hidden_size=32, ffn_hidden_size=60)
    parameters = dict(build_unchecked(config).named_parameters())
    divided = sum(parameter.numel() for name, parameter in parameters.items() if name.endswith(DIVIDED))
    whole = sum(parameter.numel() for name, parameter in parameters.items() if not name.endswith(DIVIDED))
    assert divided % 4 == 0
    shape = replace(LayerShape.of(config, 2), tensor_parallel=4)
    assert parameter_count(shape, config.model.num_layers) == divided // 4 + whole


def test_stages_hold_the_model_and_the_tied_embedding_twice():
    config = make_config(num_layers=3)
    parameters = dict(build_unchecked(config).named_parameters())
    shape = LayerShape.of(config, 2)
    ends = [(True, False), (False, False), (False, True)]
    tied = parameters["token_embedding.weight"].numel()
    assert sum(stage_parameters(shape, 1, *end) for end in ends) == parameter_count(shape, 3) + tied
    assert sum(stage_tensors(1, *end) for end in ends) == tensor_count(3) + 1
    of_a_layer = [parameter.numel() for name, parameter in parameters.items() if name.startswith("layers.0.")]
    assert stage_parameters(shape, 1, False, False) == sum(of_a_layer)
    assert stage_tensors(1, False, False) == len(of_a_layer)
    positions = parameters["position_embedding.weight"].numel()
    assert stage_parameters(shape, 0, True, False) == tied + positions


@pytest.mark.parametrize("dtype", ELEMENT_BYTES)
@pytest.mark.parametrize(("ranks", "replicas"), [(3, 1), (6, 2), (5, 5)])
def test_ranks_share_rows_rounded_up_and_hold_no_copies(dtype, ranks, replicas):
    config = make_config(dtype=dtype)
    parameters = list(build_unchecked(config).parameters())
    shape, layers, shards = LayerShape.of(config, ELEMENT_BYTES[dtype]), config.model.num_layers, ranks // replicas
    held = static_bytes(shape, layers, Layout(ranks, 0, replicas, "parameters"))
    if shards == 1:
        assert held == static_bytes(shape, layers)
        return
    rows = sum(-(-len(parameter) // shards) * parameter[0].numel() for parameter in parameters)
    assert vars(held) == {
        "weights": 4 * rows,
        "gradients": 4 * rows,
        "master_weights": 0,
        "optimizer": 8 * rows + 4 * len(parameters),
    }
    assert held.weights > 4 * (sum(parameter.numel() for parameter in parameters) // shards)


def test_layer_parameters_are_the_model_s_in_its_order():
    """The gradients' norm goes through them in that order."""
    config = make_config(num_layers=1)
    shapes = [tuple(parameter.shape) for parameter in build_unchecked(config).parameters()]
    shape = LayerShape.of(config, 4)
    outside = outside_parameters(shape)
    expected = [*outside[:2], *layer_parameters(shape).values(), *outside[2:]]
    assert shapes == [(rows, width) if width > 1 else (rows,) for rows, width in expected]


def test_the_norm_s_block_is_that_of_the_optimizer():
    assert NORM_BLOCK_ELEMENTS == BLOCK_ELEMENTS
