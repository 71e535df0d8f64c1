"""Which operators run a second time: exact FLOPs, and exact counts of the ops that hold none."""

import collections

import pytest
import torch
from recompute_settings import SETTINGS
from tiny_models import build_unchecked, make_batch, make_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from megaselect.prediction.flops import micro_batch_flops
from megaselect.prediction.saved_bytes import LayerShape
from megaselect.recomputation.plan import make_plan

LAYERS, S, B, H, A, VOCABULARY, PADDED = 4, 19, 3, 40, 5, 131, 256
MODEL = {
    "num_layers": LAYERS,
    "seq_length": S,
    "hidden_size": H,
    "num_attention_heads": A,
    "ffn_hidden_size": 4 * H,
    "vocab_size": VOCABULARY,
}
CORE_ATTENTION = 4 * B * S * S * H  # QKᵀ and probs times V
LAYER = 24 * B * S * H * H + CORE_ATTENTION  # Korthikanti et al. 2022, appendix A
HEAD = 2 * B * S * H * PADDED

# What backward runs again: (whole layers, core attentions).
RUN_AGAIN = {
    "none": (0, 0),
    "softmax": (0, 0),
    "dropout": (0, 0),
    "softmax dropout": (0, 0),
    "core_attn": (0, 4),
    "core_attn dropout": (0, 4),
    "softmax core_attn": (0, 4),
    "layernorm": (0, 0),
    "gelu": (0, 0),
    "softmax dropout layernorm": (0, 0),
    "all": (0, 4),
    "layernorm gelu odd": (0, 0),
    "uniform 1": (4, 0),
    "uniform 2": (4, 0),
    "uniform 3": (4, 0),
    "uniform 4": (4, 0),
    "block 1": (1, 0),
    "block 3": (3, 0),
    "sqrt": (4, 0),
    "softmax dropout even": (0, 0),
    "core_attn dropout 1-2": (0, 2),
    "uniform 1 skip-first-last": (2, 0),
    "uniform 2 of 0,2-3": (3, 0),
    "block 1 of 1-2": (1, 0),
}


def flops_of(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def test_no_setting_is_left_out():
    assert RUN_AGAIN.keys() == SETTINGS.keys()


# One of each kind; without attention's dropout the others are soak tests, for it holds no product.
WITHOUT_DROPOUT = ("none", "softmax dropout", "core_attn", "all", "uniform 2", "block 3", "sqrt")


@pytest.mark.parametrize(
    ("name", "dropout_p"),
    [
        *((name, 0.1) for name in RUN_AGAIN),
        *(pytest.param(name, 0.0, marks=() if name in WITHOUT_DROPOUT else pytest.mark.soak) for name in RUN_AGAIN),
    ],
)
def test_flops(name, dropout_p):
    layers, core_attentions = RUN_AGAIN[name]
    config = make_config(SETTINGS[name], batch=B, **MODEL, attention_dropout_p=dropout_p, hidden_dropout_p=0.1)
    model = build_unchecked(config)
    forward, loss = flops_of(lambda: model(*make_batch(config)))
    backward, _ = flops_of(loss.backward)
    assert forward == LAYERS * LAYER + HEAD
    assert backward == 2 * forward + layers * LAYER + core_attentions * CORE_ATTENTION
    predicted = micro_batch_flops(LayerShape.of(config, 4), make_plan(config.recompute, LAYERS))
    assert (predicted.model, predicted.hardware) == (3 * forward, forward + backward)


class CountOps(TorchDispatchMode):
    """How often each op ran."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.counts[op.overloadpacket] += 1
        return op(*args, **(kwargs or {}))


# Layers whose layernorms, or whose GELU, a selective setting recomputes.
REBUILT = {
    "layernorm": (4, 0),
    "gelu": (0, 4),
    "softmax dropout layernorm": (4, 0),
    "all": (4, 4),
    "layernorm gelu odd": (2, 2),
}


@pytest.mark.parametrize("name", RUN_AGAIN)
def test_ops_without_a_matrix_product_run_again_where_the_setting_says(name):
    layers, core_attentions = RUN_AGAIN[name]
    layernorms, gelus = REBUILT.get(name, (0, 0))
    config = make_config(SETTINGS[name], batch=B, **MODEL)
    loss = build_unchecked(config)(*make_batch(config))
    with CountOps() as ran:
        loss.backward()
    ours = torch.ops.megaselect
    again = {
        ours.layer_norm: layers + 2 * layernorms,
        ours.bias_dropout_residual_layer_norm: layers,  # which is a whole layer's second layernorm
        ours.bias_dropout_residual: layers,
        ours.softmax_dropout_value: layers + core_attentions,
        ours.gelu: layers + gelus,
        torch.ops.aten.baddbmm: layers + core_attentions,
        torch.ops.aten.addmm: 2 * layers,  # qkv and fc1, which have biases
        ours.cross_entropy: 0,
        ours.softmax_dropout_value_backward: LAYERS,
    }
    assert {op: ran.counts[op] for op in again} == again
